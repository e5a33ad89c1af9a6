"""Departures from the norm as z, p and q maps of every test person, and how good they are.

The norm whose maps are written is a setting; every candidate is judged beside it.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsnb import bids, dataset, record
from dsnb.anomaly import comparisons, groups, metrics, regions, shares, undo
from dsnb.anomaly.people import BY_NAME, People, Source
from dsnb.anomaly.truth import judge_ds
from dsnb.anomaly.tuning import FittedNorm, fit_all
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.norms import Calibration
from dsnb.space import SPACE, Grid

CODE = ("space", "rivals", "vae/networks", "vae/task", "latents", "norms", "anomaly")
PARENTS = ("prepared", "runs/vae", "latents", "deformation")  # beside what `undo` makes
NEEDED = {"fit": 8, "validation": 1, "scale": 5, "calibration": 2, "test": 2}  # euploids
NEEDED_DS = 2
Z_LIMIT = 32.0  # what the stored z can hold


class Reference(NamedTuple):
    """What people are compared with: a fitted norm, its calibration, regions, and who made it."""

    norm: FittedNorm
    calibration: Calibration
    ruler: regions.Ruler
    ages: tuple[float, float]  # of scale people, years
    widest: float  # share of voxels beyond their 95 % range, largest of calibration people
    people: int  # calibration people


def calibrate(norm: FittedNorm) -> Reference:
    """Set coverage, error and region bounds of a norm on scale and calibration people."""
    source = norm.source
    rows = [source.rows("euploid", split) for split in ("scale", "calibration")]
    scale, known = map(source.people, rows)
    z = norm.z(known)
    calibration = Calibration.fit(z, norm.normative.freedom, source.study.maps.q)
    ruler = regions.Ruler.fit(norm, scale, known, source.table.iloc[rows[1]])
    ages, widest = source.table.iloc[rows[0]]["age"], (calibration.p(z) < 0.05).mean(1).max()
    return Reference(norm, calibration, ruler, (ages.min(), ages.max()), float(widest), len(z))


def map_path(folder: Path, name: str, desc: str, grid: Grid) -> Path:
    """Return where the map `desc` of a person (sub-ID) or a group lies in the product `maps`."""
    stem = f"{name}_space-{SPACE}_res-{grid.voxel_mm:g}mm_desc-{desc}_statmap.nii.gz"
    return folder / name / ("anat" if name.startswith("sub-") else "") / stem


def read_map(root: Path, name: str, desc: str, grid: Grid) -> np.ndarray:
    """Return the written map `desc` (X, Y, Z) of a person (sub-ID) or a group (group-NAME)."""
    return bids.load_volume(map_path(root / "maps", name, desc, grid))[0]


def limit(values: np.ndarray) -> np.ndarray:
    """Return values that the stored z can hold."""
    return np.clip(values, -Z_LIMIT, Z_LIMIT)


def write_map(
    folder: Path, name: str, desc: str, values: np.ndarray, source: Source, text: str,
    outside: float = 0, step: float | None = None,
) -> None:  # fmt: skip
    """Write brain values (V,) as a statistical map with its sidecar, unless it is there."""
    path = map_path(folder, name, desc, source.grid)
    if path.is_file() and bids.sidecar_of(path).is_file():
        return
    volume = source.fill(limit(values), outside)
    norm = BY_NAME[source.study.maps.norm]
    grid = "template" if norm.of_volume else "person, aligned by an affine"
    note = {"Description": text, "Norm": norm.name, "Anatomy": grid}
    bids.save_volume(path, volume, source.grid, note, step)


def write_people(
    folder: Path, norm: FittedNorm, rows: np.ndarray, people: People, calibration: Calibration
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write z, p, q and uncertainty of every person of `rows`; return z, p and q (N, V)."""
    source, z = norm.source, norm.z(people)
    p, q = calibration.p(z), calibration.q(z)
    spread = norm.normative.spread(people.covariates)
    unit = "log local volume" if norm.candidate.of_volume else "intensity"
    sign = "larger" if norm.candidate.of_volume else "brighter"
    notes = {  # values, outside of the brain, step on disk, text
        "z": (z, 0, 1e-3, f"departure / predictive SD, positive = {sign} than the norm"),
        "p": (p, 1, None, f"two-sided, Student t, {calibration.freedom} degrees, calibrated"),
        "q": (q, 1, None, f"Benjamini-Hochberg, |z| / {calibration.family:.3f} (conformal) before"),
        "uncertainty": (spread, 0, None, f"predictive SD of a euploid's departure, {unit}"),
    }
    for number, row in enumerate(rows):
        name = source.table["participant_id"].iloc[row]
        for desc, (values, outside, step, text) in notes.items():
            write_map(folder, name, desc, values[number], source, text, outside, step)
        record.progress("maps", number + 1, len(rows))
    return z, p, q


def write_groups(folder: Path, norm: FittedNorm) -> list[dict]:
    """Write the maps of every contrast between people that has enough of them; return its sizes."""
    source, settings, table = norm.source, norm.source.study.maps, []
    rows = np.r_[source.rows("euploid", "test"), source.rows("DS")]
    everybody = source.table.iloc[rows].reset_index(drop=True)
    people = source.people(rows)
    maps = norm.departures(people, settings.group_smoothing_mm)
    contrasts = groups.choose(everybody)
    for number, (name, tested) in enumerate(contrasts.items(), start=1):
        row = {"contrast": name, "people": len(tested), "note": groups.too_few(name, tested)}
        if name in groups.GROUPS:
            row["in_group"] = int(tested.sum())
        if not row["note"]:
            some = tested.index.to_numpy()
            found = groups.contrast(
                name, maps[some], tested.to_numpy(float), everybody.iloc[some],
                settings.permutations, settings.seed,
            )  # fmt: skip
            for desc, text in groups.WRITTEN.items():
                outside = 1 if desc in groups.SHARES else 0
                write_map(folder, f"group-{name}", desc, found[desc], source, text, outside)
            for desc in groups.SHARES:
                row[f"{desc}_share"] = float((found[desc] < settings.q).mean())
            row["strongest"] = float(found["effect"][np.argmax(np.abs(found["effect"]))])
        table.append(row)
        record.progress("groups", number, len(contrasts))
    return table


def _measure(folder: Path, source: Source) -> tuple[dict, dict, dict]:
    """Fit, write and judge the maps: headline, tables, seconds."""
    settings, started = source.study.maps, time.perf_counter()
    fitted, trials = fit_all(source)
    norm, tuned = fitted[settings.norm], time.perf_counter()
    headline, tables = dict.fromkeys(record.HEADLINE["05_anomaly"].split()), {"reasons": {}}
    reference = calibrate(norm)
    calibration, ruler = reference.calibration, reference.ruler
    sets = {
        "euploid test": source.rows("euploid", "test"),
        "sham": source.rows("euploid", "sham", kind="sham"),
        "DS test": source.rows("DS", "test"),
    }
    measured, error = [], []
    for name, rows in sets.items():
        if not len(rows):
            continue
        judged, table = name == "DS test", source.table.iloc[rows]
        people = source.people(rows, moved=judged)
        z, p, q = write_people(folder, norm, rows, people, calibration)
        error.append({"people_of": name, **metrics.flagged(q, settings.q)})
        measured.append(ruler.measure(people, table))
        if name == "euploid test":
            tables["coverage"] = metrics.coverage(p, table, people.regions)
            spread = norm.normative.spread(people.covariates)
            tables["reliability"] = metrics.reliability(spread, z * spread, settings)
            headline["euploids_flagged"] = error[-1]["share"]
            headline["coverage_error_points"] = abs(100 * float((p >= 0.05).mean()) - 95)
        elif name == "sham":
            headline["sham_flagged"] = error[-1]["share"]
        elif len(rows) >= NEEDED_DS and source.has_truth(rows):
            truth = source.truth_of(rows)
            note = f"mean true log volume change of {len(rows)} test people with DS"
            write_map(folder, "group-DS", "truth", truth.mean(0), source, note)
            found = judge_ds(ruler, fitted, people, q, rows)
            headline, tables = headline | found[0], tables | found[1]
    regions.write(folder, measured, norm.candidate.of_volume)
    tables |= {"flagged": error, "trials": trials, "groups": write_groups(folder, norm)}
    tables["chosen"] = [one.choice for one in fitted.values()]
    headline["norm"] = norm.candidate.name
    tables["region_error"] = regions.flagged(measured)
    tables["sessions"] = comparisons.compare_sessions(ruler)
    tables["stages"] = comparisons.compare_stages(ruler)
    tables["variation"] = comparisons.compare_with_variation(source)
    tables["calibration"] = {**asdict(calibration), "people": reference.people}
    seconds = {"tune": tuned - started, "score_and_write": time.perf_counter() - tuned}
    return headline, tables, seconds


def too_few(table: pd.DataFrame) -> str | None:
    """Return why no norm can be made from these people, or None."""
    for split, needed in NEEDED.items():
        people = len(dataset.select(table, "euploid", split))
        if people < needed:
            return f"{people} euploid {split} people, {needed} needed"
    return None


def map_departures(root: Path, study: Study, shard: str = "1/1") -> None:
    """Make `maps`, and what is missing of its parents' registration and planting.

    It holds z, p, q of test people and shams, regions, groups and metrics.json. `shard` k/n
    only registers every n-th volume, beside others that do theirs; a run without it collects them.
    """
    if not shares.register(root, study, shard):
        return
    reason, parents = too_few(dataset.load_table(root)), PARENTS
    if reason is None:
        undo.train(root, study)
        parents += (undo.PLANTED, undo.RUN)
    settings = {key: value for key, value in asdict(study.maps).items() if key != "processes"}
    product = record.begin(root, "maps", "map", settings, parents, CODE)
    if product.done:
        return
    headline, tables, seconds = dict.fromkeys(record.HEADLINE["05_anomaly"].split()), {}, {}
    if reason is None:
        bids.describe(product.folder, "dsnb anomaly maps", "prepared")
        headline, tables, seconds = _measure(product.folder, Source(root, study))
    reasons = tables.setdefault("reasons", {})
    for key, value in headline.items():
        if value is None:
            absent = "too few test people with DS whose truth is known"
            absent = "no sham people" if key == "sham_flagged" else absent
            if key.endswith("ratio_ci") and headline["lift"] is not None:
                absent = "the best rival is not shown to be above 0"
            reasons.setdefault(key, reason or absent)
    measured = {"headline": headline, "tables": tables, "timing": seconds}
    record.write_json(product.folder / "metrics.json", measured)
    product.finish()


def evaluate(root: Path, study: Study) -> dict:
    """Return headline, tables and timing of page 05 as `map_departures` measured them."""
    record.require(root, "maps")
    return json.loads((root / "maps" / "metrics.json").read_text())


def chosen(root: Path, study: Study) -> list[dict]:
    """Return the settings chosen for each norm in finished `maps`; refuse (E-FEW) where none was.

    Raises BadInput (E-STALE) where the maps were made with other settings than the study's.
    """
    tables = evaluate(root, study)["tables"]
    if not tables.get("chosen"):
        few, fix = next(iter(tables["reasons"].values())), "give a cohort with more euploids"
        raise BadInput("E-FEW", "maps", "what its norm is made of", few, "enough people", fix)
    made = json.loads((root / "maps" / "product.json").read_text())["note"]["settings"]
    asked, fix = record.plain(asdict(study.maps)), "say them again, or run `dsnb map` with the new"
    for name in made.keys() - {"norm"}:  # every norm has its settings chosen there
        if asked[name] != made[name]:
            raise BadInput("E-STALE", "maps", name, asked[name], f"{made[name]} as mapped", fix)
    return tables["chosen"]
