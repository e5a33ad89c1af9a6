"""One way to refuse: a sentence that names code, file, field, what was seen, expected, and the fix.

Stock readers stop at the bytes they need, so a cut or flipped gzip passes unseen; the reader
here judges the header first, before anything is allocated, and then reads to the last byte.
"""

import gzip
import math
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np

MAX_VOXELS = 512**3
MAX_INFLATION = 40  # declared bytes for each byte on disk ...
MIN_BOMB_BYTES = 2**26  # ... of files that declare more than this; small empty masks pack tighter
# How far voxel sizes may stand apart, as a share: one written in other units is far beyond it.
PIXDIM_TOLERANCE = 0.01
FETCH, REPAIR = "fetch the file again", "repair the header from the original scan"


class BadInput(Exception):
    """Input that we refuse; the command line prints it as one sentence and exits with 2."""

    def __init__(self, code: str, where: object, field: str, seen: object, expected: str, fix: str):
        self.code = code
        self.said = (code, str(where), field, seen, expected, fix)
        super().__init__(f"{code} {where}: {field} is {seen!r}, expected {expected}; {fix}.")

    def __reduce__(self) -> tuple:
        """Let a refusal travel between processes: rebuild it from what was said."""
        return type(self), self.said


class Report(BadInput):
    """Every problem of one data set at once; its code is that of the first."""

    def __init__(self, problems: list[BadInput]):
        self.code, self.problems, self.said = problems[0].code, problems, (problems,)
        lines = [f"{len(problems)} problems, nothing was written:"] if len(problems) > 1 else []
        Exception.__init__(self, "\n".join(lines + [str(problem) for problem in problems]))


def is_safe_id(value: str) -> bool:
    """Tell whether an id is plain ASCII `sub-<letters and digits>`, safe in a path."""
    return re.fullmatch(r"sub-[A-Za-z0-9]+", value, re.ASCII) is not None


def check_path(path: Path, inside: Path | None = None) -> None:
    """Refuse (E-PATH) what is no readable file, saying which of five things it is."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop raises RuntimeError in Python 3.11
        seen = "a link loop or a broken link" if path.is_symlink() else "absent"
        raise BadInput("E-PATH", path.name, "this path", seen, "a file", "restore it") from None
    if not target.is_file():
        seen = "a folder" if target.is_dir() else "no plain file"
        raise BadInput("E-PATH", path.name, "this path", seen, "a file", "give the scan itself")
    if inside is not None and not target.is_relative_to(inside.resolve()):
        fix = "copy the file into the data folder"
        raise BadInput("E-PATH", path.name, "its link", "out of the data folder", "inside it", fix)


def _check_format(path: Path) -> None:
    """Refuse (E-FORMAT) content that is not what the name says, with what it looks like."""
    with path.open("rb") as file:
        head = file.read(132)
    packed, named = head[:2] == b"\x1f\x8b", path.name.endswith(".gz")
    if not head:
        seen, fix = "empty", FETCH
    elif head.lstrip()[:1] == b"<":
        seen, fix = "a web page (HTML)", "the download failed: fetch it again"
    elif head[128:] == b"DICM":
        seen, fix = "DICOM", "export the scan as NIfTI"
    elif packed != named:
        seen = "gzip" if packed else "not gzip"
        fix = "rename it to .nii.gz" if packed else "rename it to .nii, or gzip it"
    else:
        return
    raise BadInput("E-FORMAT", path.name, "its content", seen, "NIfTI as its name says", fix)


def _check_dims(header: nib.Nifti1Header, where: str, bytes_on_disk: int) -> tuple:
    """Return the three dimensions, judged (E-DIM, E-DTYPE, E-SIZE) from the header alone."""
    rank = int(header["dim"][0])
    dims = tuple(int(size) for size in header["dim"][1 : rank + 1]) if 0 < rank < 8 else ()
    if len(dims) < 3 or min(dims[:3]) < 2 or any(size != 1 for size in dims[3:]):
        fix = "extract one 3D volume" if len(dims) > 3 else "export the whole volume"
        raise BadInput("E-DIM", where, "its shape", dims, "three axes", fix)
    try:
        dtype = header.get_data_dtype()
    except KeyError:
        dtype = np.dtype("V1")
    if dtype.kind not in "iuf":
        fix = "export grey values"
        raise BadInput("E-DTYPE", where, "its datatype", str(dtype), "real numbers", fix)
    voxels, declared = math.prod(dims), math.prod(dims) * dtype.itemsize
    if voxels > MAX_VOXELS:
        fix = "check the header, or crop the scan"
        raise BadInput("E-SIZE", where, "its voxels", voxels, f"at most {MAX_VOXELS}", fix)
    if declared > max(MIN_BOMB_BYTES, MAX_INFLATION * bytes_on_disk):
        expected = f"at most {MAX_INFLATION} times the {bytes_on_disk} on disk"
        raise BadInput("E-SIZE", where, "its bytes", declared, expected, FETCH)
    return dims[:3]


def _check_affine(header: nib.Nifti1Header, where: str) -> np.ndarray:
    """Return the (4, 4) affine in mm; refuse E-NOAFFINE, E-PIXDIM, E-AFFINE and E-LR."""
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (sform or qform):
        fix = "write the orientation into the header with the tool that made the scan"
        raise BadInput("E-NOAFFINE", where, "sform and qform code", 0, "one above 0", fix)
    pixdim = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise BadInput("E-PIXDIM", where, "pixdim", pixdim.tolist(), "sizes above 0 mm", REPAIR)
    header["pixdim"][0] = (
        -1 if header["pixdim"][0] < 0 else 1
    )  # qfac: unset means 1, by the standard
    try:
        from_qform = header.get_qform() if qform else None
    except ValueError:
        raise BadInput("E-AFFINE", where, "qform", "no rotation", "a rotation", REPAIR) from None
    affine = header.get_sform() if sform else from_qform
    turn = affine[:3, :3]
    sound = np.isfinite(affine).all() and (not qform or np.isfinite(from_qform).all())
    size = float(np.linalg.det(turn)) if sound else math.nan
    if not abs(size) > 1e-6:
        raise BadInput("E-AFFINE", where, "affine determinant", size, "not 0", REPAIR)
    sizes = np.sqrt((turn**2).sum(0))
    if np.abs(sizes / pixdim - 1).max() > PIXDIM_TOLERANCE:
        seen = [[round(float(size), 4) for size in three] for three in (pixdim, sizes)]
        raise BadInput("E-PIXDIM", where, "pixdim against sform", seen, "equal sizes", REPAIR)
    if sform and qform:
        axes = ["".join(nib.aff2axcodes(matrix)) for matrix in (affine, from_qform)]
        if np.linalg.det(from_qform[:3, :3]) * size < 0:
            raise BadInput("E-LR", where, "sform against qform", axes, "one handedness", REPAIR)
    return affine


def _check_scaling(header: nib.Nifti1Header, where: str) -> tuple[np.float32, np.float32]:
    """Return slope and intercept; 0 means unset by the standard, NaN and Inf are E-SLOPE."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise BadInput("E-SLOPE", where, "slope, intercept", [slope, inter], "finite", REPAIR)
    return (np.float32(slope), np.float32(inter)) if slope else (np.float32(1), np.float32(0))


@contextmanager
def _reading(where: str):
    """Turn every failure of a damaged stream into one refusal (E-TRUNC, E-CRC)."""
    try:
        yield
    except EOFError:
        said = ("E-TRUNC", where, "its gzip stream", "cut short", "a whole file", FETCH)
        raise BadInput(*said) from None
    except (gzip.BadGzipFile, zlib.error):
        said = ("E-CRC", where, "its gzip stream", "damaged", "the bytes as written", FETCH)
        raise BadInput(*said) from None


def _read_header(file: BinaryIO, where: str) -> nib.Nifti1Header:
    """Read a NIfTI-1 or NIfTI-2 header of either byte order, unjudged."""
    block = file.read(348)
    kind = nib.Nifti1Header
    if block[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
        block, kind = block + file.read(192), nib.Nifti2Header
    if len(block) < kind.sizeof_hdr:
        raise BadInput("E-TRUNC", where, "its bytes", len(block), f"{kind.sizeof_hdr}", FETCH)
    header = kind(block, check=False)
    placed = 0 <= float(header["vox_offset"]) < MIN_BOMB_BYTES
    if header["magic"].item()[:3] not in (b"n+1", b"n+2") or not placed:
        fix = "export the scan as one NIfTI file"
        raise BadInput("E-FORMAT", where, "its content", "not NIfTI", "NIfTI", fix)
    return header


def read_nifti(path: Path, inside: Path | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a checked scan: volume (X, Y, Z) float32 in file order, affine (4, 4), notes.

    Reads to the last byte, so that a checksum is always compared. Refuses E-PATH, E-FORMAT,
    E-DIM, E-DTYPE, E-SIZE, E-NOAFFINE, E-AFFINE, E-PIXDIM, E-LR, E-SLOPE, E-TRUNC, E-CRC and
    E-NONFINITE; notes name what was accepted but changed.
    """
    check_path(path, inside)
    _check_format(path)
    where, on_disk = path.name, path.stat().st_size
    with _reading(where), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        header = _read_header(file, where)
        dims = _check_dims(header, where, on_disk)
        affine = _check_affine(header, where)
        slope, inter = _check_scaling(header, where)
        dtype = header.get_data_dtype()
        skipped = max(int(header["vox_offset"]), header.sizeof_hdr + 4) - header.sizeof_hdr
        file.read(skipped)
        wanted = math.prod(dims) * dtype.itemsize
        data = file.read(wanted)
        # The checksum sits behind the last byte; what else follows is read no further than a bomb.
        behind = sum(len(file.read(2**20)) for _ in range(MIN_BOMB_BYTES // 2**20))
    if len(data) < wanted:
        raise BadInput("E-TRUNC", where, "its voxel bytes", len(data), f"{wanted}", FETCH)
    if behind >= MIN_BOMB_BYTES:
        raise BadInput("E-SIZE", where, "bytes behind its voxels", behind, "none", FETCH)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        volume = np.frombuffer(data, dtype).reshape(dims, order="F").astype(np.float32)
        volume = volume * slope + inter
    if not (finite := np.isfinite(volume)).all():
        first = [int(index) for index in np.argwhere(~finite)[0]]
        seen = f"{(~finite).sum()} voxels ({(~finite).mean():.2%}), first at {first}"
        fix = "find out what wrote them; do not fill them in"
        raise BadInput("E-NONFINITE", where, "NaN or infinity", seen, "none", fix)
    notes = ["squeezed to 3D"] if int(header["dim"][0]) > 3 else []
    notes += ["slope 0 read as unset"] if float(header["scl_slope"]) == 0 else []
    return volume, affine, notes
