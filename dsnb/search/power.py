"""How many euploids and people with DS does a study need? Redraws of real scans, in the ledger.

The population is a cohort's people without and with the disease's field planted on them, as the
registration sees both; a study draws from both, with replacement, and tests every voxel.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dsnb import dataset, record, rivals
from dsnb.anomaly import metrics
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.norms import smooth
from dsnb.space import load_template

LEDGER = "05_power"
CODE = ("space", "rivals", "norms", "phantom", "search/power")
SEVERITIES = (0.25, 0.5, 0.75, 1.0, 1.5)
DS = (10, 20, 40, 80)  # people with DS in a study
EUPLOIDS = (1, 4)  # times as many euploids
REDRAWS = 200
THINNED = 4  # every fourth voxel
FEWEST = 10  # people planted


def redraw(
    euploid: np.ndarray, ds: np.ndarray, counts: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return q (REDRAWS, V) of Welch's t of people drawn from two pools (N, V), and |d| (V,).

    `counts` says how many euploids and people with DS a study has; d is Cohen's of the pools.
    """
    rng, moments = np.random.default_rng(seed), []
    for pool, count in zip((euploid, ds), counts):
        people = rng.multinomial(count, np.full(len(pool), 1 / len(pool)), REDRAWS)
        mean = people @ pool / count
        # Pools vary by (N - 1) / N too little: the population is larger than them.
        variance = (people @ pool**2 / count - mean**2) * count / (count - 1)
        moments.append((mean, variance * len(pool) / (len(pool) - 1) / count))
    (mean, error), (ds_mean, ds_error) = moments
    t = (ds_mean - mean) / np.sqrt(np.maximum(error + ds_error, np.finfo(np.float32).tiny))
    parts = error**2 / (counts[0] - 1) + ds_error**2 / (counts[1] - 1)
    freedom = (error + ds_error) ** 2 / np.maximum(parts, np.finfo(np.float64).tiny)
    q = stats.false_discovery_control(2 * stats.t.sf(np.abs(t), freedom), axis=1)
    spread = np.sqrt((euploid.var(0, ddof=1) + ds.var(0, ddof=1)) / 2)
    return q, np.abs(ds.mean(0) - euploid.mean(0)) / np.maximum(spread, 1e-6)


def pools(root: Path, study: Study) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return log-Jacobians (N, V) of people before and after planting, and the mean truth (V,).

    Smoothed as group maps are; the truth is that of severity 1. Refuses (E-FEW) fewer than 10.
    """
    table, log_jacobian = dataset.load_table(root), rivals.load_deformation(root)[1]
    brain, (known, truth) = load_template(study.grid).brain, dataset.load_truth(root)
    planted = np.flatnonzero(table["kind"] == "planted")
    if len(planted) < FEWEST:
        fix = "give a cohort of euploids, on which the disease is planted"
        raise BadInput("E-FEW", "prepared", "planted people", len(planted), f"{FEWEST}", fix)
    origins = pd.Index(table["participant_id"]).get_indexer(table["origin"].iloc[planted])
    before, after = (
        smooth(np.asarray(log_jacobian[rows], np.float32)[:, brain], brain,
               study.maps.group_smoothing_mm, study.grid)[:, ::THINNED]
        for rows in (origins, planted)
    )  # fmt: skip
    rows = pd.Index(known["participant_id"]).get_indexer(table["participant_id"].iloc[planted])
    return before, after, np.asarray(truth[rows], np.float32)[:, brain].mean(0)[::THINNED]


def draw_studies(root: Path, study: Study) -> None:
    """Fill the ledger: power and false discoveries by severity and numbers of people."""
    before, after, truth = pools(root, study)
    changed, same = np.abs(truth) > study.maps.truth_change, np.abs(truth) < metrics.UNCHANGED
    for severity in SEVERITIES:
        ds = before + severity * (after - before)
        for count, times in product(DS, EUPLOIDS):
            part = {"euploids": times * count, "ds": count}
            task = {**dataset.identify(root), "part": part, "change": severity, "seed": 1}
            key = record.row_key(task, CODE)
            if record.find_row(LEDGER, key):
                continue
            q, d = redraw(before, ds, (times * count, count), seed=1)
            found = q < study.maps.q
            power, false = found[:, changed].mean(1), found[:, same].sum(1)
            low, high = np.quantile(power, [0.025, 0.975])
            row = {"d": d[changed].mean(), "power": power.mean(), "low": low, "high": high,
                   "false": (false / np.maximum(found.sum(1), 1)).mean(), "redraws": REDRAWS,
                   "pool": len(before)}  # fmt: skip
            record.add_row(LEDGER, key, row)
        record.say(f"power at severity {severity:g}: {len(DS) * len(EUPLOIDS)} kinds of study")
