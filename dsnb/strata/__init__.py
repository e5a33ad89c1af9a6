"""From latents to discrimination, staging and strata, on people whom the VAE never saw."""

from dsnb.strata import axes
from dsnb.strata.questions import analyse
