"""Norms that come with the package: maps and a VAE for whoever has few euploids."""

from dsnb.shipped.norm import Shipped, export, known_names, load, score
from dsnb.shipped.people import apply, recentre_for
