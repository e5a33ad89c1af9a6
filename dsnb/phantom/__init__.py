"""The digital phantom cohort: individual anatomy, a disease field, twins, shams and exact truth."""

from dsnb.phantom.fields import disease_displacement, sham_displacement
from dsnb.phantom.scans import PHANTOM_VERSION, make_cohort
from dsnb.phantom.summary import summarise
