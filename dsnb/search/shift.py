"""What a new scanner does to healthy people's maps, and what a few euploids there mend.

Unseen euploids are scanned again by the simulated scanner of `sites`, one fault at a time and all
together, or move in the scanner, and are mapped by the norm whose maps are written; in the ledger.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from dsnb import anomaly, dataset, record
from dsnb.anomaly import maps, metrics, tuning
from dsnb.anomaly.people import People, Source
from dsnb.config import Study
from dsnb.norms import Calibration, Normative
from dsnb.sites import recentre, rescan

LEDGER = "05_shift"
CODE = ("space", "rivals", "norms", "anomaly", "sites", "search/shift")
SOUND = {"contrast": 1.0, "gain": 1.0, "bias": 0.0, "noise": 0.0, "blur_mm": 0.0}
FAULTS = {"none": (), **{name: (name,) for name in SOUND}, "motion": (), "all": tuple(SOUND)}
MOVED = 4.0  # SD of a head's shift (mm, each axis) and turn (degrees) while it is scanned [E]
JUDGED = 60  # test euploids


def scan_again(source: Source, rows: np.ndarray, fault: str) -> People:
    """Return people (N) as a scanner with one fault, or all, would give them."""
    sound = {name: value for name, value in SOUND.items() if name not in FAULTS[fault]}
    study = replace(source.study, sites=replace(source.study.sites, **sound))
    table = source.table.iloc[rows]
    volumes = np.stack([
        rescan(source.volumes[row].astype(np.float32), name, study)
        for row, name in zip(rows, table["participant_id"])
    ]).astype(np.float32)  # fmt: skip
    if fault == "motion":
        volumes = np.stack([
            move(volume, np.random.default_rng([study.sites.seed, row]), source.grid.voxel_mm)
            for volume, row in zip(volumes, rows)
        ])  # fmt: skip
    return source.from_volumes(table, volumes, moved=False)


def move(volume: np.ndarray, rng: np.random.Generator, voxel_mm: float) -> np.ndarray:
    """Return a volume (X, Y, Z) whose head moved once while the lines of y were read.

    Lines of the spectrum after that moment, at 55 to 90 % of them, are the moved head's: the ghost
    and blur of real motion. Background stays at zero, as in stripped scans.
    """
    turn = Rotation.from_euler("xyz", rng.normal(0, MOVED, 3), degrees=True).as_matrix()
    centre = (np.array(volume.shape) - 1) / 2
    offset = centre - turn @ centre + rng.normal(0, MOVED, 3) / voxel_mm
    moved = ndimage.affine_transform(volume, turn, offset, order=1)
    still, other = (fft.fftshift(fft.fft(v, axis=1), axes=1) for v in (volume, moved))
    after = int(rng.uniform(0.55, 0.9) * volume.shape[1])
    still[:, after:] = other[:, after:]
    mixed = np.abs(fft.ifft(fft.ifftshift(still, axes=1), axis=1))
    return np.where(volume > 0, mixed, 0).astype(np.float32)


def judge(
    normative: Normative, calibration: Calibration, departures: np.ndarray, people: People
) -> dict:
    """Return the share of people with any voxel at q < rate, and of voxels within 95 %."""
    z = normative.z(departures, people.covariates)
    calibration = replace(calibration, freedom=normative.freedom)
    inside = float((calibration.p(z) >= 0.05).mean())
    return metrics.flagged(calibration.q(z), calibration.rate) | {"coverage": inside}


def scan_sites(root: Path, study: Study) -> None:
    """Fill the ledger with every fault, and with re-centring on k euploids where all come at once.

    Those k are calibration people, scanned there; the judged are test people.
    """
    torch.set_num_threads(1)  # the same arithmetic on any machine
    chosen = [row for row in anomaly.chosen(root, study) if row["norm"] == study.maps.norm]
    source, about = Source(root, study), dataset.identify(root)
    norm = tuning.fit_chosen(source, chosen)[study.maps.norm]
    rows, known = source.rows("euploid", "test")[:JUDGED], source.rows("euploid", "calibration")
    calibration = maps.calibrate(norm).calibration
    for fault in FAULTS:
        task = {**about, "part": fault, "seed": study.sites.seed, "chosen": chosen,
                "sites": vars(study.sites)}  # fmt: skip
        key = record.row_key(task, CODE)
        if record.find_row(LEDGER, key):
            continue
        people = scan_again(source, rows, fault)
        departures = norm.departures(people)
        found = [{"known": 0} | judge(norm.normative, calibration, departures, people)]
        if fault == "all":
            there = scan_again(source, known, fault)
            away = norm.departures(there)
            for k in (k for k in study.sites.known if k <= len(known)):
                moved = recentre(norm.normative, away[:k], there.covariates[:k], rescale=True)
                found.append({"known": k} | judge(moved, calibration, departures, people))
        record.add_row(LEDGER, key, {"sites": found, "norm": study.maps.norm})
        record.say(f"{fault}: {found[0]['flagged']} of {len(rows)} euploids flagged")
