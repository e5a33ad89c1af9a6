"""A scan is read exactly or refused, in time (every row of the fault table: test_faults)."""

import pickle
import struct
import time
import tracemalloc

import malformed
import nibabel as nib
import numpy as np
import pytest
from malformed import AFFINE, CONTENTS, SHAPE, SLOPE, WHOLE, make

from dsnb import checks
from dsnb.checks import BadInput


def refusal(path, inside=None) -> BadInput:
    with pytest.raises(BadInput) as caught:
        checks.read_nifti(path, inside)
    return caught.value


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


def test_a_stripped_float64_scan_is_no_bomb(tmp_path):
    """Falls: that a brain of 256 grey values among zeros, saved as float64, is taken."""
    volume = np.zeros((256, 256, 160))
    volume[100:140, 100:150, 50:110] = np.random.default_rng(0).integers(0, 256, (40, 50, 60))
    nib.save(nib.Nifti1Image(volume, AFFINE), tmp_path / "scan.nii.gz")
    assert volume.nbytes > 72 * (tmp_path / "scan.nii.gz").stat().st_size
    assert checks.read_nifti(tmp_path / "scan.nii.gz")[0].max() == 255


@pytest.mark.parametrize("fault", [name for name in CONTENTS if name.startswith("D10")])
def test_d10_bombs_are_refused_in_time_and_memory(fault, tmp_path):
    """A header of 32767^3 voxels and a gigabyte of zeros cost neither a second nor 200 MB."""
    code, content = CONTENTS[fault]
    path = tmp_path / ("bomb.nii.gz" if content[:2] == b"\x1f\x8b" else "bomb.nii")
    path.write_bytes(content)
    begun = time.process_time()
    assert refusal(path).code == code
    assert time.process_time() - begun < 1
    tracemalloc.start()
    refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()


def test_no_flipped_byte_passes(tmp_path):
    """Whatever byte of a gzip file is flipped, it is refused or the voxels are the same."""
    path, wanted = tmp_path / "scan.nii.gz", malformed.values()
    for place in np.random.default_rng(0).integers(0, len(WHOLE), 200):
        packed = bytearray(WHOLE)
        packed[place] ^= 0xFF
        path.write_bytes(packed)
        try:
            assert np.array_equal(checks.read_nifti(path)[0], wanted)
        except BadInput as problem:
            assert problem.code in {"E-CRC", "E-TRUNC", "E-FORMAT"}, place


def test_no_header_crashes_the_reader(tmp_path):
    """Whatever bytes of a header are noise, the scan is read or refused, never a traceback."""
    rng, path, sound = np.random.default_rng(0), tmp_path / "scan.nii", make()
    for _ in range(500):
        content = bytearray(sound)
        content[rng.integers(0, 348)] = rng.integers(256)
        content[rng.integers(40, 328)] = rng.integers(256)
        path.write_bytes(content)
        try:
            assert np.isfinite(checks.read_nifti(path)[0]).all()
        except BadInput as problem:
            assert problem.code.startswith("E-")


UNIT, DESCRIP = 123, 148
ODD = {
    "W-UNITS": malformed.patched(UNIT, "b", 0),
    "W-DTYPE": make(malformed.values().astype(np.float64)),
    "W-TEXT": malformed.patched(DESCRIP, "8s", b"DOE^JANE"),
    "W-VOXEL": make(affine=np.diag([9.0, 9.0, 9.0, 1.0])),
    "W-SHEAR": malformed.patched(
        malformed.SROW, "8f", 1, 0.3, 0, 0, 0, 0.954, 0, 0,
        content=malformed.patched(malformed.QFORM_CODE, "h", 0),
    ),
    "W-QFORM": malformed.patched(malformed.SROW, "4f", 1, 0, 0, 30),
    "W-INTENSITY": make(np.full(SHAPE, 7, np.float32)),
}  # fmt: skip


@pytest.mark.parametrize("code", ODD)
def test_odd_scans_are_read_and_warned_of(code, tmp_path):
    """Units, datatype, text, sizes, shear, a second place and flat voxels are told, no more."""
    (tmp_path / "scan.nii").write_bytes(ODD[code])
    volume, _, _, warnings = checks.examine(tmp_path / "scan.nii")
    assert volume.shape == SHAPE and [warning.code for warning in warnings] == [code]
    assert "JANE" not in str(warnings[0]), "a warning must not show what a header says"


@pytest.mark.parametrize(
    "volume, said",
    [
        (-malformed.values(), "no value above 0"),
        (malformed.values() * (np.indices(SHAPE).sum(0) == 3), "zeros"),
        (malformed.values() - 100, "below 0"),
        ((malformed.values() > 100).astype(np.float32), "2 grey values"),
    ],
)
def test_implausible_intensities_are_named(volume, said, tmp_path):
    """A negative, an almost empty, a centred volume and a mask are no T1w scans."""
    (tmp_path / "scan.nii").write_bytes(make(volume))
    (warning,) = checks.examine(tmp_path / "scan.nii")[3]
    assert warning.code == "W-INTENSITY" and said in str(warning)


def test_sound_scan_has_no_warning(tmp_path):
    """Warnings would be skipped by readers if sound scans had some."""
    (tmp_path / "scan.nii").write_bytes(make())
    assert checks.examine(tmp_path / "scan.nii")[2:] == ([], [])


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
    words = {"absent": "absent", "folder": "a folder", "outside": "out of", "loop": "a link loop"}
    problem = refusal(path, inside)
    assert problem.code == "E-PATH" and words.get(kind, "a broken link") in str(problem)


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


def test_messages_show_control_characters_only_escaped():
    """A file name must not write to somebody's terminal."""
    problem = BadInput("E-NAME", "sub-1/\x1b[31m\n", "its name", "\x1b", "sub-1", "rename it")
    assert str(problem).isprintable() and "\\x1b" in str(problem)


def test_a_copy_saved_as_float_has_equal_voxels(tmp_path):
    """Slope and intercept are applied as other tools do, so that copies can be found."""
    image = nib.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE), AFFINE)
    image.header.set_slope_inter(0.1, 3.3)
    nib.save(image, tmp_path / "scan.nii")
    stored = nib.load(tmp_path / "scan.nii")
    nib.save(nib.Nifti1Image(stored.get_fdata(), AFFINE), tmp_path / "copy.nii.gz")
    volumes = [checks.read_nifti(tmp_path / name)[0] for name in ("scan.nii", "copy.nii.gz")]
    assert np.array_equal(*volumes)
