"""Departures from the norm as z, p and q maps of every test person, and how good they are.

Smoothing and components of every candidate are chosen on validation euploids with generic changes
(`norms.generic_change`); the disease field is seen by nobody before the test people are scored.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dsnb import bids, record, rivals
from dsnb.anomaly import metrics
from dsnb.anomaly.people import (
    CANDIDATES,
    PRIMARY,
    Candidate,
    People,
    Source,
    departures,
    fit_norms,
    in_own_grid,
)
from dsnb.config import Study
from dsnb.norms import Calibration, Normative, smooth
from dsnb.space import REGIONS, SPACE, region_masks

CODE = ("space", "rivals", "vae/networks", "vae/task", "latents", "norms", "anomaly")
PARENTS = ("prepared", "runs/vae", "latents", "deformation")
NEEDED = {"fit": 8, "validation": 1, "scale": 5, "calibration": 2, "test": 2}  # euploids
NEEDED_DS = 2
THINNED = 4  # every fourth voxel suffices to choose settings
Z_LIMIT = 32.0  # what the stored z can hold


def tune(
    candidate: Candidate, scale: People, planted: People, truth: np.ndarray, norm, source: Source
) -> list[dict]:
    """Return the mean lift over generic changes for every choice of components and smoothing.

    `truth` is the planted |log-Jacobian| (N, V) in the planted people's own grid.
    """
    settings, trials = source.study.maps, []
    changed = truth > settings.truth_change
    for count in settings.nuisance if candidate.free else (0,):
        maps = [departures(candidate, who, count, norm, source.decode) for who in (scale, planted)]
        for fwhm_mm in settings.smoothing_mm:
            near, far = (smooth(values, source.brain, fwhm_mm, source.grid) for values in maps)
            z = Normative.fit(near, scale.covariates).z(far, planted.covariates)
            z = in_own_grid(candidate, np.abs(z), planted, source.brain)
            lift = metrics.average_precision(z[:, ::THINNED], changed[:, ::THINNED])[2].mean()
            trials.append({"norm": candidate.name, "components": count, "fwhm_mm": fwhm_mm,
                           "lift": lift})  # fmt: skip
    return trials


def scorer(
    candidate: Candidate, scale: People, norm, choice: dict, source: Source
) -> tuple[Normative, Callable]:
    """Return a candidate's Normative and the function People -> z (N, V) at its chosen settings."""

    def depart(people: People) -> np.ndarray:
        maps = departures(candidate, people, choice["components"], norm, source.decode)
        return smooth(maps, source.brain, choice["fwhm_mm"], source.grid)

    normative = Normative.fit(depart(scale), scale.covariates)
    return normative, lambda people: normative.z(depart(people), people.covariates)


def fit_scorers(source: Source) -> tuple[dict, list[dict], list[dict]]:
    """Tune and fit every candidate: {name: (Normative, scorer)}, the choices, and all trials."""
    models = fit_norms(
        source.people(source.rows("euploid", "fit"), decoded=False), max(source.study.maps.nuisance)
    )
    scale = source.people(source.rows("euploid", "scale"))
    planted, truth = source.planted(source.rows("euploid", "validation"))
    fitted, choices, trials = {}, [], []
    for number, candidate in enumerate(CANDIDATES, start=1):
        norm = models[candidate.features]
        found = tune(candidate, scale, planted, truth, norm, source)
        choices.append(max(found, key=lambda trial: trial["lift"]))
        trials += found
        fitted[candidate.name] = scorer(candidate, scale, norm, choices[-1], source)
        record.progress("norms", number, len(CANDIDATES))
    return fitted, choices, trials


def against_truth(source: Source, fitted: dict) -> tuple[dict, dict]:
    """Score every candidate, the nulls and the ceiling on test DS: headline and tables.

    The null is the SD map of the primary's norm, with no subject in it. The ceiling uses DS
    labels: the mean image z of the DS `generator-fit` people.
    """
    rows = source.rows("DS", "test")
    people = source.people(rows, moved=True)
    truth = np.abs(source.truth_of(rows))
    scores = {
        candidate.name: in_own_grid(
            candidate, np.abs(fitted[candidate.name][1](people)), people, source.brain
        )
        for candidate in CANDIDATES
    }
    for name, of in (("sd_map", PRIMARY), ("sd_map_tbm", "tbm")):
        scores[name] = np.broadcast_to(fitted[of][0].sd, truth.shape)
    labelled = source.rows("DS", "generator-fit")
    if len(labelled):
        mean = np.abs(fitted["image"][1](source.people(labelled, decoded=False)).mean(0))
        scores["ceiling"] = np.broadcast_to(mean, truth.shape)
    headline, table = metrics.compare(scores, truth, source.study.maps)
    return headline, {"norms": table}


def _path(folder: Path, name: str, desc: str, source: Source) -> Path:
    stem = f"{name}_space-{SPACE}_res-{source.grid.voxel_mm:g}mm_desc-{desc}_statmap.nii.gz"
    return folder / name / ("anat" if name.startswith("sub-") else "") / stem


def write_map(folder: Path, name: str, desc: str, values: np.ndarray, source: Source, note: dict):
    """Write brain values (V,) as a statistical map with its sidecar; z in steps of 0.001."""
    path = _path(folder, name, desc, source)
    if path.is_file() and bids.sidecar_of(path).is_file():
        return
    volume = np.full(source.brain.shape, note.pop("Outside"), np.float32)
    volume[source.brain] = np.clip(values, -Z_LIMIT, Z_LIMIT)
    step = 1e-3 if desc.startswith(("z", "mean")) else None
    bids.save_volume(path, volume, source.grid, {**note, "Norm": PRIMARY}, step)


def write_people(folder: Path, source: Source, rows: np.ndarray, z, calibration) -> tuple:
    """Write z, p and q of every person of `rows`; return p and q (N, V)."""
    p, q = calibration.p(z), calibration.q(z)
    notes = {
        "z": (z, 0, "departure / predictive SD, positive = brighter than the norm"),
        "p": (p, 1, f"two-sided, Student t, {calibration.freedom} degrees, calibrated coverage"),
        "q": (q, 1, f"Benjamini-Hochberg, |z| / {calibration.family:.3f} (conformal) before"),
    }
    for number, row in enumerate(rows):
        name = source.table["participant_id"].iloc[row]
        for desc, (values, outside, text) in notes.items():
            note = {"Description": text, "Outside": outside}
            write_map(folder, name, desc, values[number], source, note)
        record.progress("maps", number + 1, len(rows))
    return p, q


def region_table(source: Source, rows: np.ndarray, z: np.ndarray, healthy: np.ndarray):
    """Return mean z and its centile among `healthy` z (M, V) for people (N, V) and regions."""
    masks = region_masks(source.grid)[:, source.brain]
    weights = (masks / np.maximum(masks.sum(1, keepdims=True), 1e-6)).T
    means, known = z @ weights, np.sort(healthy @ weights, axis=0)
    centiles = [
        100 * (np.searchsorted(known[:, k], means[:, k]) + 0.5) / (len(known) + 1)
        for k in range(len(REGIONS))
    ]
    long = source.table.iloc[rows][["participant_id", "group", "kind"]]
    long = long.loc[long.index.repeat(len(REGIONS))].reset_index(drop=True)
    return long.assign(
        region=np.tile(REGIONS, len(rows)),
        z=means.ravel().round(4),
        centile=np.stack(centiles, 1).ravel().round(1),
    )


def write_group(folder: Path, source: Source, z: np.ndarray, truth: np.ndarray) -> list[dict]:
    """Write the DS group's mean z and mean truth; return their sizes per region."""
    for desc, values in (("meanz", z), ("meantruth", truth)):
        note = {"Description": f"mean over {len(z)} test people with DS", "Outside": 0}
        write_map(folder, "group-DS", desc, values.mean(0), source, note)
    return metrics.region_effects(z, truth, region_masks(source.grid)[:, source.brain])


def _measure(folder: Path, source: Source) -> tuple[dict, dict, dict]:
    """Fit, write and judge the maps: headline, tables, seconds."""
    settings, started = source.study.maps, time.perf_counter()
    fitted, choices, trials = fit_scorers(source)
    tuned = time.perf_counter()
    headline, tables = dict.fromkeys(record.HEADLINE["05_anomaly"].split()), {"reasons": {}}
    normative, score = fitted[PRIMARY]
    known = score(source.people(source.rows("euploid", "calibration")))
    calibration = Calibration.fit(known, normative.freedom, settings.q)
    sets = {
        "euploid test": source.rows("euploid", "test"),
        "sham": source.rows("euploid", "sham", kind="sham"),
        "DS test": source.rows("DS", "test"),
    }
    regions, error = [], []
    for name, rows in sets.items():
        if not len(rows):
            continue
        z = score(source.people(rows))
        p, q = write_people(folder, source, rows, z, calibration)
        error.append({"people_of": name, **metrics.flagged(q, settings.q)})
        regions.append(region_table(source, rows, z, known))
        if name == "euploid test":
            tables["coverage"] = metrics.coverage(p, source.table.iloc[rows])
            headline["euploids_flagged"] = error[-1]["share"]
            headline["coverage_error_points"] = abs(100 * float((p >= 0.05).mean()) - 95)
        elif name == "sham":
            headline["sham_flagged"] = error[-1]["share"]
        elif len(rows) >= NEEDED_DS:
            truth = source.truth_of(rows)
            headline |= metrics.error_against_truth(q, truth, settings, tables)
            tables["regions"] = write_group(folder, source, z, truth)
            pairs = pd.DataFrame(tables["regions"])
            rank = stats.spearmanr(pairs["z"], pairs["truth"]).statistic
            headline["effect_rank_correlation"] = float(rank) if np.isfinite(rank) else None
            found = against_truth(source, fitted)
            headline, tables = headline | found[0], tables | found[1]
    bids.write_table(folder / "regions.tsv", pd.concat(regions, ignore_index=True))
    tables |= {"flagged": error, "chosen": choices, "trials": trials}
    tables["calibration"] = {**asdict(calibration), "people": len(known)}
    seconds = {"tune": tuned - started, "score_and_write": time.perf_counter() - tuned}
    return headline, tables, seconds


def too_few(source: Source) -> str | None:
    """Return why no norm can be made from these people, or None."""
    for split, needed in NEEDED.items():
        people = len(source.rows("euploid", split))
        if people < needed:
            return f"{people} euploid {split} people, {needed} needed"
    return None


def map_departures(root: Path, study: Study) -> None:
    """Make `deformation` and `maps`: z, p, q of test people and shams, regions, metrics.json."""
    rivals.register(root, study)
    settings = {key: value for key, value in asdict(study.maps).items() if key != "processes"}
    product = record.begin(root, "maps", "map", settings, PARENTS, CODE)
    if product.done:
        return
    source = Source(root, study)
    reason = too_few(source)
    headline, tables, seconds = dict.fromkeys(record.HEADLINE["05_anomaly"].split()), {}, {}
    if reason is None:
        bids.describe(product.folder, "dsnb anomaly maps", "prepared")
        headline, tables, seconds = _measure(product.folder, source)
    reasons = tables.setdefault("reasons", {})
    for key, value in headline.items():
        if value is None:
            absent = "no sham people" if key == "sham_flagged" else "too few test people with DS"
            reasons.setdefault(key, reason or absent)
    measured = {"headline": headline, "tables": tables, "timing": seconds}
    record.write_json(product.folder / "metrics.json", measured)
    product.finish()


def evaluate(root: Path, study: Study) -> dict:
    """Return headline, tables and timing of page 05 as `map_departures` measured them."""
    record.require(root, "maps")
    return json.loads((root / "maps" / "metrics.json").read_text())
