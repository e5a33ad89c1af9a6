"""What is odd in a sound scan: warnings that a person should look at before a study."""

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dsnb.checks.refusals import BadInput

UNITS = {0: "not said", 1: "metre", 2: "mm", 3: "micrometre"}  # NIfTI codes of the unit of space
USUAL_MM = (0.3, 4.5)  # voxel sizes of T1w scans; another unit or a body part lies far outside
SHEAR = 0.01  # largest cosine between two axes that counts as rounding
Header = nib.Nifti1Header
EMPTY, BELOW, GREYS = 0.99, 0.1, 16  # share of zeros, share below 0, grey values: odd beyond


def doubt_header(header: Header, affine: np.ndarray, extended: bool, where: str) -> list[BadInput]:
    """Return warnings of a sound header: unit, datatype, extensions, text, sizes, shear, qform.

    Text is named by its field and never shown: it may hold a patient's name.
    """
    unit, sizes = int(header["xyzt_units"]) & 7, voxel_sizes(affine)
    turn, mm = affine[:3, :3] / sizes, sizes.round(6).tolist()
    fields = {"descrip", "aux_file", "db_name", "intent_name"} & set(header.keys())
    text = sorted(name for name in fields if header[name].item().strip(b"\0 "))
    both = int(header["sform_code"]) > 0 and int(header["qform_code"]) > 0
    moved = np.abs(affine - header.get_qform()).max() if both else 0.0
    plain, look = "we copy none of it", "look at the scan"
    rules = [
        ("W-UNITS", unit != 2, "unit of space", UNITS.get(unit, unit), "mm", "we read mm"),
        ("W-DTYPE", header.get_data_dtype().itemsize > 4, "its datatype",
         str(header.get_data_dtype()), "at most 32 bits", "we read float32"),
        ("W-TEXT", extended or text, "header text", text + ["extension"] * extended, "none", plain),
        ("W-VOXEL", not USUAL_MM[0] <= min(sizes) <= max(sizes) <= USUAL_MM[1], "voxel size", mm,
         f"{USUAL_MM[0]} to {USUAL_MM[1]} mm", "check the unit"),
        ("W-SHEAR", np.abs(turn.T @ turn - np.eye(3)).max() > SHEAR, "angle of its axes",
         "sheared", "90 degrees", look),
        ("W-QFORM", moved > 1, "sform, qform", f"up to {moved:.3g} mm apart", "one place",
         "we take the sform"),
    ]  # fmt: skip
    return [BadInput(code, where, *said) for code, wrong, *said in rules if wrong]


def doubt_voxels(volume: np.ndarray, where: str) -> list[BadInput]:
    """Return a warning (W-INTENSITY) of a volume (X, Y, Z) that is hardly a T1w scan."""
    empty, below = float((volume == 0).mean()), float((volume < 0).mean())
    greys = len(np.unique(volume.ravel()[:: max(volume.size // 10**5, 1)]))
    rules = [
        (volume.min() == volume.max(), "one value only"),
        (volume.max() <= 0, "no value above 0"),
        (empty > EMPTY, f"{empty:.1%} zeros"),
        (below > BELOW, f"{below:.1%} below 0"),
        (greys <= GREYS, f"{greys} grey values"),
    ]
    seen = next((word for wrong, word in rules if wrong), None)
    said = ("W-INTENSITY", where, "its intensity", seen, "a T1w scan's grey values")
    return [BadInput(*said, "look at the scan")] if seen else []
