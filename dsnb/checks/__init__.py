"""One way to refuse, and the checks of paths, ids and scans that do so."""

from dsnb.checks.refusals import BadInput, Report, check_path, is_safe_id
from dsnb.checks.scans import examine, judge, read_nifti
