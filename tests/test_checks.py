"""A damaged scan is refused with the right code, in time, by a sentence that helps."""

import gzip
import pickle
import re
import struct
import time
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from dsnb import checks
from dsnb.checks import BadInput

SHAPE = (16, 18, 20)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
# Byte offsets of NIfTI-1 header fields, from the standard.
DIM, PIXDIM, SLOPE, QFORM_CODE, QUATERN_B, SROW = 40, 76, 112, 252, 256, 280


def make(values=None, affine=AFFINE) -> bytes:
    """Return a sound NIfTI file: uint16-like floats, sform and qform set, 1 mm."""
    if values is None:
        values = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    return image.to_bytes()


def patched(offset: int, form: str, *values) -> bytes:
    """Return a sound file with some header bytes overwritten (little endian)."""
    content = bytearray(make())
    struct.pack_into("<" + form, content, offset, *values)
    return bytes(content)


def flipped() -> bytes:
    """Return a gzip file whose stream was damaged in the middle."""
    packed = bytearray(gzip.compress(make()))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


def with_value(value: float) -> bytes:
    """Return a file with one bad voxel."""
    values = np.ones(SHAPE, np.float32)
    values[3, 4, 5] = value
    return make(values)


def rgb() -> bytes:
    """Return a colour picture as NIfTI."""
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nib.Nifti1Image(colour, AFFINE).to_bytes()


WHOLE = gzip.compress(make())
FLIPPED_AXIS = np.diag([-1.0, 1.0, 1.0, 1.0])
MALFORMED = {
    "cut in half": ("E-TRUNC", WHOLE[: len(WHOLE) // 2]),
    "last 8 bytes missing": ("E-TRUNC", WHOLE[:-8]),
    "wrong checksum": ("E-CRC", WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:]),
    "byte flipped": ("E-CRC", flipped()),
    "plain file cut": ("E-TRUNC", make()[:3000]),
    "header cut": ("E-TRUNC", make()[:200]),
    "four dimensions": ("E-DIM", make(np.ones((*SHAPE, 3), np.float32))),
    "two dimensions": ("E-DIM", make(np.ones(SHAPE[:2], np.float32))),
    "a dimension of 0": ("E-DIM", patched(DIM, "4h", 3, 16, 0, 20)),
    "NaN voxel": ("E-NONFINITE", with_value(np.nan)),
    "infinite voxel": ("E-NONFINITE", with_value(np.inf)),
    "no affine codes": ("E-NOAFFINE", patched(QFORM_CODE, "2h", 0, 0)),
    "left-right": ("E-LR", patched(SROW, "4f", *FLIPPED_AXIS[0])),
    "negative pixdim": ("E-PIXDIM", patched(PIXDIM + 4, "f", -1.0)),
    "pixdim 0": ("E-PIXDIM", patched(PIXDIM + 4, "f", 0.0)),
    "pixdim unlike sform": ("E-PIXDIM", patched(PIXDIM + 4, "3f", 3.0, 3.0, 3.0)),
    "sform singular": ("E-AFFINE", patched(SROW, "12f", *np.zeros(12))),
    "sform NaN": ("E-AFFINE", patched(SROW, "f", np.nan)),
    "qform no rotation": ("E-AFFINE", patched(QUATERN_B, "3f", 9.0, 9.0, 9.0)),
    "qform NaN": ("E-AFFINE", patched(QUATERN_B, "f", np.nan)),
    "too many voxels": ("E-SIZE", patched(DIM, "4h", 3, 32767, 32767, 32767)),
    "slope NaN": ("E-SLOPE", patched(SLOPE, "f", np.nan)),
    "intercept infinite": ("E-SLOPE", patched(SLOPE + 4, "f", np.inf)),
    "colour": ("E-DTYPE", rgb()),
    "unknown datatype": ("E-DTYPE", patched(70, "h", 999)),
    "HTML": ("E-FORMAT", b"<!DOCTYPE html><html>404</html>" * 20),
    "empty": ("E-FORMAT", b""),
    "DICOM": ("E-FORMAT", b"\0" * 128 + b"DICM" + b"\0" * 400),
    "noise": ("E-FORMAT", bytes(range(256)) * 20),
    "no place for voxels": ("E-FORMAT", patched(108, "f", np.nan)),
}


def refusal(path, inside=None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        checks.read_nifti(path, inside)
    return caught.value


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_scan_is_refused(fault, tmp_path):
    """Every row of the fault list gets its code, in one sentence with all its parts."""
    code, content = MALFORMED[fault]
    path = tmp_path / ("scan.nii.gz" if content[:2] == b"\x1f\x8b" else "scan.nii")
    path.write_bytes(content)
    problem = refusal(path)
    assert problem.code == code
    assert re.fullmatch(r"E-[A-Z]+ scan\.nii(\.gz)?: .+ is .+, expected .+; .+\.", str(problem))
    assert str(tmp_path) not in str(problem)


def test_sound_scans_are_read_exactly(tmp_path):
    """Byte order, gzip, NIfTI-2, slopes and oblique axes change no voxel."""
    values = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    big = nib.Nifti1Image(values, AFFINE, nib.Nifti1Header(endianness=">"))
    big.header.set_slope_inter(0.5, 10)
    (tmp_path / "big.nii").write_bytes(big.to_bytes())
    volume, affine, notes = checks.read_nifti(tmp_path / "big.nii")
    assert np.array_equal(volume, values * 0.5 + 10) and volume.dtype == np.float32
    assert np.array_equal(affine, AFFINE) and notes == []
    turn = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.1) @ np.diag([-1, 2, 3]))
    second = nib.Nifti2Image(values.astype(np.float64), turn)
    nib.save(second, tmp_path / "second.nii.gz")
    volume, affine, _ = checks.read_nifti(tmp_path / "second.nii.gz")
    assert np.array_equal(volume, values) and np.allclose(affine, turn, atol=1e-5)


def test_what_is_accepted_but_changed_is_noted(tmp_path):
    """Nothing is repaired in silence: a squeezed axis and an unset slope leave a note."""
    content = bytearray(make(np.ones((*SHAPE, 1), np.float32)))
    struct.pack_into("<f", content, SLOPE, 0.0)
    (tmp_path / "scan.nii").write_bytes(content)
    volume, _, notes = checks.read_nifti(tmp_path / "scan.nii")
    assert volume.shape == SHAPE and (volume == 1).all()
    assert notes == ["squeezed to 3D", "slope 0 read as unset"]


def test_bomb_is_refused_from_its_header(tmp_path):
    """A gigabyte of zeros in a megabyte of gzip costs neither time nor memory."""
    header = bytearray(make()[:352])
    struct.pack_into("<4h", header, DIM, 3, 512, 512, 512)
    struct.pack_into("<h", header, 70, 64)  # float64
    zeros = gzip.compress(bytes(2**24))
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(header)) + zeros * 64)
    tracemalloc.start()
    begun = time.perf_counter()
    assert refusal(tmp_path / "bomb.nii.gz").code == "E-SIZE"
    assert time.perf_counter() - begun < 1 and tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()


def test_bytes_behind_the_voxels_end(tmp_path):
    """A small scan with a bomb behind it is refused, not read for ever."""
    tail = gzip.compress(bytes(2**24)) * 8
    (tmp_path / "tail.nii.gz").write_bytes(WHOLE + tail)
    assert refusal(tmp_path / "tail.nii.gz").code == "E-SIZE"


@pytest.mark.parametrize("kind", ["absent", "folder", "broken", "loop", "outside"])
def test_path_faults_are_told_apart(kind, tmp_path):
    """A colleague learns whether the file, its link or its place is wrong."""
    inside, path = tmp_path / "raw", tmp_path / "raw" / "scan.nii.gz"
    inside.mkdir()
    (tmp_path / "other.nii.gz").write_bytes(WHOLE)
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        target = {"broken": inside / "gone", "loop": path, "outside": tmp_path / "other.nii.gz"}
        path.symlink_to(target[kind])
    words = {"absent": "absent", "folder": "a folder", "outside": "out of", "loop": "loop"}
    problem = refusal(path, inside)
    assert problem.code == "E-PATH" and words.get(kind, "broken") in str(problem)


@pytest.mark.parametrize("name, fix", [("scan.nii.gz", ".nii, or"), ("scan.nii", ".nii.gz")])
def test_wrong_suffix_names_the_rename(name, fix, tmp_path):
    """A misnamed file is refused with the name to give it."""
    (tmp_path / name).write_bytes(make() if name.endswith("gz") else WHOLE)
    problem = refusal(tmp_path / name)
    assert problem.code == "E-FORMAT" and f"rename it to {fix}" in str(problem)


def test_ids_are_safe():
    """No id reaches a path, a shell or a page as anything but letters and digits."""
    for good in ("sub-001", "sub-A7", "sub-01planted"):
        assert checks.is_safe_id(good)
    attacks = "../../x|sub-../x|sub-|sub-1 2|sub-1;touch X|sub-$(x)|-rf|sub-é|sub-1\n|sub-1\0"
    assert not any(checks.is_safe_id(bad) for bad in attacks.split("|"))


def test_refusals_travel_between_processes():
    """A worker's refusal reaches its parent with code and sentence."""
    problem = BadInput("E-DIM", "scan", "shape", (1, 2), "three axes", "export it")
    again = pickle.loads(pickle.dumps(problem))
    assert (again.code, str(again)) == ("E-DIM", str(problem))
    report = checks.Report([problem, BadInput("E-CRC", "b", "gzip", "x", "y", "z")])
    again = pickle.loads(pickle.dumps(report))
    assert again.code == "E-DIM" and str(again) == str(report) and "E-CRC b" in str(again)
