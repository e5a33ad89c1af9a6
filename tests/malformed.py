"""The corpus of malformed data sets: every row D01 to D20 of the fault table, made on the spot.

Each entry of `CORPUS` spoils a sound BIDS folder (`make_folder`) and names the codes that the
report of the folder must hold. No binary file is kept: all are generated.
"""

import gzip
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (16, 18, 20)
AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])
FLIPPED_AXIS = np.diag([-1.0, 1.0, 1.0, 1.0])
# Byte offsets of NIfTI-1 header fields, from the standard.
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE = 40, 70, 76, 108, 112
QFORM_CODE, QUATERN_B, SROW = 252, 256, 280
HEADER = "participant_id\tage\tsex\tgroup\n"


def values(seed: int = 0, shape: tuple = SHAPE) -> np.ndarray:
    """Return grey values like a scan's, (X, Y, Z) float32."""
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def make(volume: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> bytes:
    """Return a sound NIfTI file: float32, sform and qform set, 1 mm."""
    image = nib.Nifti1Image(values() if volume is None else volume, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def patched(offset: int, form: str, *numbers, content: bytes | None = None) -> bytes:
    """Return a sound file with some header bytes overwritten (little endian)."""
    changed = bytearray(make() if content is None else content)
    struct.pack_into("<" + form, changed, offset, *numbers)
    return bytes(changed)


def flipped() -> bytes:
    """Return a gzip file with one damaged byte in the middle of its stream."""
    packed = bytearray(WHOLE)
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


def with_value(value: float, block: slice = slice(5, 6)) -> bytes:
    """Return a file with one bad voxel, or a bad block of them."""
    volume = values()
    volume[3, 4, block] = value
    return make(volume)


def rgb() -> bytes:
    """Return a colour picture as NIfTI."""
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nib.Nifti1Image(colour, AFFINE).to_bytes()


def bomb(claimed: tuple[int, int, int] = (512, 512, 512)) -> bytes:
    """Return a gigabyte of zeros (float64) in a megabyte of gzip."""
    header = patched(DATATYPE, "hh", 64, 64, content=patched(DIM, "4h", 3, *claimed)[:352])
    return gzip.compress(header) + gzip.compress(bytes(2**24)) * 64


WHOLE = gzip.compress(make())
HTML = b"<!DOCTYPE html><html>404</html>" * 20
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 100
INT16 = make(values().astype(np.int16))
# The content of one scan -> row of the fault table and code.
CONTENTS = {
    "D01 cut in half": ("E-TRUNC", WHOLE[: len(WHOLE) // 2]),
    "D01 plain file cut": ("E-TRUNC", make()[:3000]),
    "D01 header cut": ("E-TRUNC", make()[:200]),
    "D02 byte flipped": ("E-CRC", flipped()),
    "D02 wrong checksum": ("E-CRC", WHOLE[:-8] + b"\0\0\0\0" + WHOLE[-4:]),
    "D03 last 8 bytes missing": ("E-TRUNC", WHOLE[:-8]),
    "D04 four dimensions": ("E-DIM", make(np.ones((*SHAPE, 3), np.float32))),
    "D04 two dimensions": ("E-DIM", make(np.ones(SHAPE[:2], np.float32))),
    "D04 a dimension of 0": ("E-DIM", patched(DIM, "4h", 3, 16, 0, 20)),
    "D05 block of NaN": ("E-NONFINITE", with_value(np.nan, slice(None))),
    "D05 infinite voxel": ("E-NONFINITE", with_value(np.inf)),
    "D06 no affine codes": ("E-NOAFFINE", patched(QFORM_CODE, "2h", 0, 0)),
    "D07 left-right": ("E-LR", patched(SROW, "4f", *FLIPPED_AXIS[0])),
    "D07 turned by 180 degrees": ("E-LR", patched(SROW, "8f", -1, 0, 0, 0, 0, -1, 0, 0)),
    "D08 sform singular": ("E-AFFINE", patched(SROW, "12f", *np.zeros(12))),
    "D08 sform NaN": ("E-AFFINE", patched(SROW, "f", np.nan)),
    "D08 qform no rotation": ("E-AFFINE", patched(QUATERN_B, "3f", 9.0, 9.0, 9.0)),
    "D08 qform NaN": ("E-AFFINE", patched(QUATERN_B, "f", np.nan)),
    "D09 negative pixdim": ("E-PIXDIM", patched(PIXDIM + 4, "f", -1.0)),
    "D09 pixdim 0": ("E-PIXDIM", patched(PIXDIM + 4, "f", 0.0)),
    "D09 pixdim unlike sform": ("E-PIXDIM", patched(PIXDIM + 4, "3f", 3.0, 3.0, 3.0)),
    "D10 too many voxels": ("E-SIZE", patched(DIM, "4h", 3, 32767, 32767, 32767)),
    "D10 bomb": ("E-SIZE", bomb()),
    "D10 bomb behind the voxels": ("E-SIZE", WHOLE + gzip.compress(bytes(2**24)) * 8),
    "D11 slope NaN": ("E-SLOPE", patched(SLOPE, "f", np.nan)),
    "D11 intercept infinite": ("E-SLOPE", patched(SLOPE + 4, "f", np.inf)),
    "D12 colour": ("E-DTYPE", rgb()),
    "D12 unknown datatype": ("E-DTYPE", patched(DATATYPE, "h", 999)),
    "D12 HTML": ("E-FORMAT", HTML),
    "D12 empty": ("E-FORMAT", b""),
    "D12 DICOM": ("E-FORMAT", b"\0" * 128 + b"DICM" + b"\0" * 400),
    "D12 pointer": ("E-FORMAT", LFS),
    "D12 noise": ("E-FORMAT", bytes(range(256)) * 20),
    "D12 no place for voxels": ("E-FORMAT", patched(VOX_OFFSET, "f", np.nan)),
}


@dataclass(frozen=True)
class Fault:
    """How a sound folder is spoilt, and the codes that its report must hold, no others."""

    codes: tuple[str, ...]
    spoil: Callable[[Path], object]


def scan_path(raw: Path, name: str, suffix: str = ".nii.gz") -> Path:
    """Return where a person's scan lies."""
    return raw / name / "anat" / f"{name}_T1w{suffix}"


def write_scan(path: Path, content: bytes) -> None:
    """Write a scan, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def make_folder(raw: Path, people: int = 6) -> Path:
    """Write a sound BIDS folder with a table; sub-01 is the one that faults strike."""
    names = [f"sub-{number:02d}" for number in range(1, people + 1)]
    for seed, name in enumerate(names):
        write_scan(scan_path(raw, name), make(values(seed), native(seed)))
    rows = [f"{name}\t{30 + seed}\tF\tcontrol\n" for seed, name in enumerate(names)]
    (raw / "participants.tsv").write_text(HEADER + "".join(rows))
    return raw


def native(seed: int) -> np.ndarray:
    """Return an affine (4, 4) of 1 mm with an origin of its own, as native scans have."""
    affine = AFFINE.copy()
    affine[:3, 3] = -10 - seed
    return affine


def put(content: bytes) -> Callable[[Path], None]:
    """Return a fault that replaces the scan of sub-01 by `content`, as it is."""

    def spoil(raw: Path) -> None:
        scan_path(raw, "sub-01").unlink()
        packed = content[:2] == b"\x1f\x8b"
        scan_path(raw, "sub-01", ".nii.gz" if packed else ".nii").write_bytes(content)

    return spoil


def replace_by(make_it: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return a fault that puts something that is no file in the place of sub-01's scan."""

    def spoil(raw: Path) -> None:
        scan_path(raw, "sub-01").unlink()
        make_it(scan_path(raw, "sub-01"))

    return spoil


def link_out(path: Path) -> None:
    """Link to a sound scan that lies outside of the data folder."""
    outside = path.parents[3] / "elsewhere.nii.gz"
    write_scan(outside, make())
    path.symlink_to(outside)


def put_table(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    """Return a fault that replaces participants.tsv; spaces stand for tabs."""
    return lambda raw: (raw / "participants.tsv").write_bytes(
        text.replace(" ", "\t").encode(encoding)
    )


def edit_table(old: str, new: str) -> Callable[[Path], object]:
    """Return a fault that edits participants.tsv."""

    def spoil(raw: Path) -> None:
        text = (raw / "participants.tsv").read_text()
        assert old in text
        (raw / "participants.tsv").write_text(text.replace(old, new))

    return spoil


def add_column(name: str, cells: str) -> Callable[[Path], object]:
    """Return a fault that adds a column with these cells, one a person."""

    def spoil(raw: Path) -> None:
        lines = (raw / "participants.tsv").read_text().splitlines()
        joined = (f"{line}\t{cell}\n" for line, cell in zip(lines, [name, *cells.split()]))
        (raw / "participants.tsv").write_text("".join(joined))

    return spoil


def rename(old: str, new: str) -> Callable[[Path], object]:
    """Return a fault that gives sub-01's scan another place and name."""

    def spoil(raw: Path) -> None:
        (raw / new).parent.mkdir(parents=True, exist_ok=True)
        (raw / old).rename(raw / new)

    return spoil


def put_scan(name: str, content: bytes) -> Callable[[Path], object]:
    """Return a fault that writes one more scan, or another one, at a path of the folder."""
    return lambda raw: write_scan(raw / name, content)


def every(*spoils: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return the fault that is several faults."""
    return lambda raw: [spoil(raw) for spoil in spoils]


def saved_again(raw: Path) -> None:
    """Give sub-02 the scan of sub-01: as float64, with flipped and swapped axes, packed anew."""
    image = nib.load(scan_path(raw, "sub-01"))
    image = nib.Nifti1Image(image.get_fdata(), image.affine)
    turn = nib.orientations.axcodes2ornt("PIR")
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(AFFINE), turn))
    scan_path(raw, "sub-02").write_bytes(gzip.compress(turned.to_bytes(), 1))


def sessions(raw: Path) -> None:
    """Give sub-01 two sessions in place of its one scan."""
    scan_path(raw, "sub-01").unlink()
    for session in (1, 2):
        name = f"sub-01/ses-{session}/anat/sub-01_ses-{session}_T1w.nii.gz"
        write_scan(raw / name, make(values(90 + session), native(90 + session)))


ONE = "sub-01/anat/sub-01_T1w.nii.gz"
SPLIT_BY_SESSION = every(
    sessions,
    put_table(
        "participant_id age sex group session split\n"
        "sub-01 30 F control 1 fit\nsub-01 32 F control 2 test\n"
        + "".join(f"sub-{k:02d} 30 F control n/a fit\n" for k in range(2, 7))
    ),
)
CORPUS = {name: Fault((code,), put(content)) for name, (code, content) in CONTENTS.items()} | {
    "D12 gzip named .nii": Fault(("E-FORMAT",), rename(ONE, ONE.removesuffix(".gz"))),
    "D12 plain named .nii.gz": Fault(
        ("E-FORMAT",), lambda raw: scan_path(raw, "sub-01").write_bytes(make())
    ),
    "D13 broken link": Fault(("E-PATH",), replace_by(lambda path: path.symlink_to("gone"))),
    "D13 link loop": Fault(("E-PATH",), replace_by(lambda path: path.symlink_to(path.name))),
    "D13 folder": Fault(("E-PATH",), replace_by(lambda path: path.mkdir())),
    "D13 link out of the folder": Fault(("E-PATH",), replace_by(link_out)),
    "D14 one of 2 mm": Fault(
        ("E-MIXED",), put_scan(ONE, make(values(), np.diag([2.0, 2.0, 2.0, 1.0])))
    ),
    "D14 another shape on a shared grid": Fault(
        ("E-MIXED",),
        lambda raw: [
            write_scan(scan_path(raw, f"sub-{k:02d}"), make(values(k, (16, 18, 20 + (k == 1)))))
            for k in range(1, 7)
        ],
    ),
    "D15 three lists": Fault(
        ("E-NOROW", "E-DUPLICATE"),
        edit_table("sub-02\t31\tF\tcontrol\n", "sub-03\t40\tF\tcontrol\nsub-77\t31\tF\tcontrol\n"),
    ),
    "D16 ids without sub-": Fault(
        ("E-ID", "E-NOROW"), put_table("participant_id age sex group\n001 30 F HC\n010 31 F HC\n")
    ),
    "D16 Latin-1": Fault(
        ("E-ENCODING",),
        put_table("participant_id age sex site\nsub-01 30 F Zürich\n", "latin-1"),
    ),
    "D16 NA as group": Fault(
        ("E-GROUP",),
        every(edit_table("30\tF\tcontrol", "30\tF\tNA"), edit_table("31\tF\tcontrol", "31\tF\tDS")),
    ),
    "D17 ages": Fault(
        ("E-AGE",),
        every(
            edit_table("\t30\t", "\t-3\t"), edit_table("\t31\t", "\t1e3\t"),
            edit_table("\t32\t", "\t45,5\t"),
        ),
    ),
    "D17 sex": Fault(("E-SEX",), edit_table("30\tF", "30\t2")),
    "D17 group": Fault(("E-GROUP",), edit_table("30\tF\tcontrol", "30\tF\tds-ad")),
    "D18 the same bytes": Fault(
        ("E-DUP",),
        lambda raw: scan_path(raw, "sub-02").write_bytes(scan_path(raw, "sub-01").read_bytes()),
    ),
    "D18 saved again otherwise": Fault(("E-DUP",), saved_again),
    "D19 sessions on two sides": Fault(("E-LEAK",), SPLIT_BY_SESSION),
    "D19 a family on two sides": Fault(
        ("E-LEAK",),
        every(
            add_column("family", "A A B C D E"), add_column("split", "fit test fit fit fit fit")
        ),
    ),
    "D19 unknown split": Fault(
        ("E-SPLIT",), add_column("split", "train train fit test n/a calibration")
    ),
    "D20 another name": Fault(("E-NAME",), rename(ONE, "sub-01/anat/mprage.nii.gz")),
    "D20 session in the name alone": Fault(
        ("E-NAME",), rename(ONE, "sub-01/anat/sub-01_ses-1_T1w.nii.gz")
    ),
    "D20 somebody else's name": Fault(("E-NAME",), rename(ONE, "sub-01/anat/sub-99_T1w.nii.gz")),
    "D20 two runs": Fault(
        ("E-RUNS",), put_scan("sub-01/anat/sub-01_run-2_T1w.nii.gz", make(values(50), native(50)))
    ),
    "P05 hostile id": Fault(("E-ID", "E-NOROW"), edit_table("sub-02\t31", "../../x\t31")),
    "G29 a label that is a command": Fault(
        ("E-LABEL",), add_column("site", "$(touch_x) A A A A A")
    ),
    "P05 hostile folder": Fault(
        ("E-NAME",), rename(ONE, "sub-01/ses-$(touch X)/anat/sub-01_T1w.nii.gz")
    ),
}  # fmt: skip
