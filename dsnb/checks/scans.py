"""A scan is judged and read: header first, before anything is allocated, then every byte.

Stock readers stop at the bytes they need, so a cut or flipped gzip passes them unseen.
"""

import gzip
import math
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dsnb.checks.doubts import doubt_header, doubt_voxels
from dsnb.checks.refusals import BadInput, check_path, shown

MAX_VOXELS = 512**3
MAX_INFLATION = 200  # declared bytes for each on disk (stripped float64: 72, zeros: 1000) ...
MIN_BOMB_BYTES = 2**26  # ... of files that declare more than this; small empty masks pack tighter
# How far voxel sizes may stand apart, as a share: one written in other units is far beyond it.
PIXDIM_TOLERANCE = 0.01
FETCH, REPAIR = "fetch the file again", "repair the header from the original scan"


def _check_format(path: Path, where: str) -> None:
    """Refuse (E-FORMAT) content that is not what the name says, with what it looks like."""
    with path.open("rb") as file:
        head = file.read(132)
    packed, named = head[:2] == b"\x1f\x8b", path.name.endswith(".gz")
    if not head:
        seen, fix = "empty", FETCH
    elif head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":
        seen, fix = "a web page (HTML)", "the download failed: fetch it again"
    elif head[128:] == b"DICM":
        seen, fix = "DICOM", "export the scan as NIfTI"
    elif head.isascii() and head.decode().replace("\n", "").isprintable():
        seen, fix = "text, as a pointer of git-annex or git-lfs", "fetch the content it points to"
    elif packed != named:
        seen = "gzip" if packed else "not gzip"
        fix = "rename it to .nii.gz" if packed else "rename it to .nii, or gzip it"
    else:
        return
    raise BadInput("E-FORMAT", where, "its content", seen, "NIfTI as its name says", fix)


def _check_dims(header: nib.Nifti1Header, where: str, bytes_on_disk: int) -> tuple:
    """Return the three dimensions, judged (E-DIM, E-DTYPE, E-SIZE) from the header alone."""
    rank = int(header["dim"][0])
    dims = tuple(int(size) for size in header["dim"][1 : rank + 1]) if 0 < rank < 8 else ()
    if len(dims) < 3 or min(dims[:3]) < 2 or any(size != 1 for size in dims[3:]):
        fix = "export the whole volume"
        if len(dims) > 3 and min(dims) > 0:
            fix = f"extract the one of its {math.prod(dims[3:])} volumes to use, often the first"
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
        raise BadInput("E-SIZE", where, "number of voxels", voxels, f"at most {MAX_VOXELS}", fix)
    if declared > max(MIN_BOMB_BYTES, MAX_INFLATION * bytes_on_disk):
        expected = f"at most {MAX_INFLATION} times the {bytes_on_disk} bytes on disk"
        raise BadInput("E-SIZE", where, "size by its header", declared, expected, FETCH)
    return dims[:3]


def _check_affine(header: nib.Nifti1Header, where: str) -> np.ndarray:
    """Return the (4, 4) affine in mm; refuse E-NOAFFINE, E-PIXDIM, E-AFFINE and E-LR."""
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not (sform or qform):
        fix = "declare the orientation: write the known affine into its sform (guide: faults)"
        raise BadInput("E-NOAFFINE", where, "sform and qform code", 0, "one above 0", fix)
    pixdim = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        seen = [pixdim.tolist(), voxel_sizes(header.get_sform()).tolist() if sform else "no sform"]
        raise BadInput("E-PIXDIM", where, "pixdim, sform", seen, "sizes above 0 mm", REPAIR)
    # qfac: unset means 1, by the standard
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1
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
    if np.abs(voxel_sizes(affine) / pixdim - 1).max() > PIXDIM_TOLERANCE:
        seen = [pixdim.round(4).tolist(), voxel_sizes(affine).round(6).tolist()]
        raise BadInput("E-PIXDIM", where, "pixdim, sform", seen, "equal sizes", REPAIR)
    if sform and qform:
        axes = ["".join(nib.aff2axcodes(matrix)) for matrix in (affine, from_qform)]
        mirrored = np.linalg.det(from_qform[:3, :3]) * size < 0
        if mirrored or {("L", "R"), ("R", "L")} & set(zip(*axes)):
            raise BadInput("E-LR", where, "sform, qform", axes, "one left and right", REPAIR)
    return affine


def _check_scaling(header: nib.Nifti1Header, where: str) -> tuple[float, float]:
    """Return slope and intercept; 0 means unset by the standard, NaN and Inf are E-SLOPE."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not (math.isfinite(slope) and math.isfinite(inter)):
        raise BadInput("E-SLOPE", where, "slope, intercept", [slope, inter], "finite", REPAIR)
    return (slope, inter) if slope else (1.0, 0.0)


@contextmanager
def _reading(where: str):
    """Turn every failure of a damaged stream into one refusal (E-TRUNC, E-CRC, E-PATH)."""
    try:
        yield
    except EOFError:
        said = ("E-TRUNC", where, "its gzip stream", "cut short", "a whole file", FETCH)
        raise BadInput(*said) from None
    except (gzip.BadGzipFile, zlib.error):
        said = ("E-CRC", where, "its gzip stream", "damaged", "the bytes as written", FETCH)
        raise BadInput(*said) from None
    except OSError as error:
        seen, fix = error.strerror or "unreadable", "make it readable"
        raise BadInput("E-PATH", where, "reading it", seen, "a readable file", fix) from None


def _read_header(file: BinaryIO, where: str) -> nib.Nifti1Header:
    """Read a NIfTI-1 or NIfTI-2 header of either byte order, unjudged."""
    block = file.read(348)
    kind = nib.Nifti1Header
    if block[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c"):
        block, kind = block + file.read(192), nib.Nifti2Header
    if len(block) < kind.sizeof_hdr:
        raise BadInput(
            "E-TRUNC", where, "its header", f"{len(block)} bytes", f"{kind.sizeof_hdr} bytes", FETCH
        )
    header = kind(block, check=False)
    placed = 0 <= float(header["vox_offset"]) < MIN_BOMB_BYTES
    if header["magic"].item()[:3] not in (b"n+1", b"n+2") or not placed:
        fix = "export the scan as one NIfTI file"
        raise BadInput("E-FORMAT", where, "its content", "not NIfTI", "NIfTI", fix)
    return header


def _read_voxels(file: BinaryIO, wanted: int, where: str) -> bytearray:
    """Read `wanted` bytes and on to the end, where the checksum is; refuse E-TRUNC and E-SIZE."""
    data, behind, cut = bytearray(), 0, False
    try:
        while len(data) < wanted and (piece := file.read1(min(2**20, wanted - len(data)))):
            data += piece
        # What else follows is read no further than a bomb.
        behind = sum(len(file.read(2**20)) for _ in range(MIN_BOMB_BYTES // 2**20))
    except EOFError:
        cut = True
    if len(data) < wanted or cut:
        seen = f"{len(data)} bytes" + ", no checksum" * (len(data) == wanted)
        expected = f"{wanted} bytes" + " and a checksum" * cut
        raise BadInput("E-TRUNC", where, "voxel data", seen, expected, FETCH)
    if behind >= MIN_BOMB_BYTES:
        raise BadInput("E-SIZE", where, "bytes behind its voxels", behind, "none", FETCH)
    return data


def read_nifti(path: Path, inside: Path | None = None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Read a checked scan: volume (X, Y, Z) float32 in file order, affine (4, 4), notes.

    Reads to the last byte, so that a checksum is always compared. Refuses E-PATH, E-FORMAT,
    E-DIM, E-DTYPE, E-SIZE, E-NOAFFINE, E-AFFINE, E-PIXDIM, E-LR, E-SLOPE, E-TRUNC, E-CRC and
    E-NONFINITE; notes name what was accepted but changed.
    """
    return examine(path, inside)[:3]


def examine(path: Path, inside: Path | None = None) -> tuple:
    """Read a scan as `read_nifti` does; return volume, affine, notes and warnings (W-*)."""
    check_path(path, inside)
    where = shown(path, inside)
    with _reading(where):
        _check_format(path, where)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            return judge(file, path.stat().st_size, where)


def judge(file: BinaryIO, bytes_on_disk: int, where: str) -> tuple:
    """Read an open NIfTI stream to its end, as `examine` does; `where` is its name."""
    header = _read_header(file, where)
    dims = _check_dims(header, where, bytes_on_disk)
    affine = _check_affine(header, where)
    slope, inter = _check_scaling(header, where)
    dtype = header.get_data_dtype()
    skipped = max(int(header["vox_offset"]), header.sizeof_hdr + 4) - header.sizeof_hdr
    extended = file.read(skipped)[:1] not in (b"", b"\0")
    data = _read_voxels(file, math.prod(dims) * dtype.itemsize, where)
    # Scaled in float64, so that a copy re-saved as float by another tool has the same voxels.
    wide = np.float32 if (slope, inter) == (1, 0) else np.float64
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
        volume = np.frombuffer(data, dtype).reshape(dims, order="F").astype(wide) * slope + inter
        volume = volume.astype(np.float32, copy=False)
    if not (finite := np.isfinite(volume)).all():
        first = [int(index) for index in np.argwhere(~finite)[0]]
        seen = f"{(~finite).sum()} voxels ({(~finite).mean():.2%}), first at {first}"
        fix = "find out what wrote them; do not fill them in"
        raise BadInput("E-NONFINITE", where, "NaN or infinity", seen, "none", fix)
    notes = ["squeezed to 3D"] if int(header["dim"][0]) > 3 else []
    notes += ["slope 0 read as unset"] if float(header["scl_slope"]) == 0 else []
    doubts = doubt_header(header, affine, extended, where) + doubt_voxels(volume, where)
    return volume, affine, notes, doubts
