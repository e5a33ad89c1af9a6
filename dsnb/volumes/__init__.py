"""Raw T1w -> prepared volume on the study grid: one resampling, one intensity scale, QC numbers.

A scan that lies in MNI space already (the phantom's do) is resampled at most once; a native one
is stripped of its skull, corrected for shading and registered first, and still resampled once.
"""

from dsnb.volumes.product import prepare, prepared_path
from dsnb.volumes.quality import QC
from dsnb.volumes.summary import compare_native, summarise
