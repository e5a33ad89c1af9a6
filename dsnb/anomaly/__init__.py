"""Departures from the norm as z, p and q maps, and what they are worth against the truth."""

from dsnb.anomaly import undo
from dsnb.anomaly.maps import chosen, evaluate, map_departures, read_map
from dsnb.anomaly.metrics import tell
from dsnb.anomaly.people import BY_NAME
