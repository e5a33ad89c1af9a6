"""New sites: a norm re-centred on a few euploids, ComBat, and a trial of both on a known shift."""

from dsnb.sites.methods import ComBat, recentre
from dsnb.sites.trial import entangle, rescan
