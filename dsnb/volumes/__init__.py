"""Raw T1w -> prepared volume on the study grid: one resampling, one intensity scale, QC numbers.

This version takes skull-stripped scans in MNI space: the phantom's, which lie on the study grid
already, and others, which are resampled once. Native scans are refused with the reason.
"""

from dsnb.volumes.product import prepare, summarise

__all__ = ["prepare", "summarise"]
