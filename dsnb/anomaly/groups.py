"""Contrasts between people: where their maps differ, by how much, and how surely.

One least-squares model a voxel, with age and sex. The corrected p compares each voxel with the
largest |t| of any voxel when people are exchanged (Freedman and Lane 1983).
"""

import numpy as np
import pandas as pd
from nilearn.mass_univariate import permuted_ols
from scipy import stats

from dsnb.space import STAGES, covariates

FEWEST = 10  # people on either side of a contrast, or with a score
GROUPS = ("DS", *STAGES[1:])  # contrasts of two groups; the others test a score
SHARES = ("q", "pfwe")
WRITTEN = {
    "effect": "Hedges' g of the groups, or the partial correlation with a score; age and sex held",
    "low": "lower end of the effect's 95 % interval", "high": "upper end of the interval",
    "q": "Benjamini-Hochberg over voxels, two-sided",
    "pfwe": "two-sided p corrected by the largest |t| under permutation (Freedman and Lane)",
}  # fmt: skip


def _one_a_family(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first person of each family: only unrelated people may be exchanged."""
    return table[~table["family"].duplicated()]


def choose(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Return contrast -> what is tested (0 or 1, or a score), indexed like the people in `table`.

    People with DS against euploids; each later stage of Alzheimer's disease against asymptomatic
    people with DS; and cognition in people with DS. A DS person's relatives are left out.
    """
    people = _one_a_family(
        table.sort_values("group", key=lambda group: group != "DS", kind="stable")
    )
    found = {"DS": (people["group"] == "DS").astype(float)}
    people = _one_a_family(table[table["group"] == "DS"])
    for stage in STAGES[1:]:
        some = people[people["stage"].isin([STAGES[0], stage])]
        found[stage] = (some["stage"] == stage).astype(float)
    return found | {"cognition": people["cognition"].dropna()}


def too_few(name: str, tested: pd.Series) -> str:
    """Return why these people are too few for a contrast, or nothing."""
    if name in GROUPS:
        least = int(min(tested.sum(), (1 - tested).sum()))
        told = f"{least} unrelated people in the smallest group, {FEWEST} needed"
        return told if least < FEWEST else ""
    if len(tested) < FEWEST:
        return f"{len(tested)} unrelated people with a score, {FEWEST} needed"
    return "everybody has the same score" if tested.nunique() < 2 else ""


def contrast(
    name: str, maps: np.ndarray, tested: np.ndarray, table: pd.DataFrame, permutations: int,
    seed: int,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Compare the maps (N, V) of people by `tested` (N,), age and sex held; arrays (V,) by name.

    `effect` is Hedges' g of the groups (Hedges 1981), or the partial correlation with a score;
    `low` and `high` its 95 % interval; `q` is Benjamini-Hochberg's over voxels, `pfwe` the
    corrected p of the largest |t|.
    """
    confounds = covariates(table)
    confounds = confounds[:, np.ptp(confounds, axis=0) > 0]  # nilearn takes one for the intercept
    found = permuted_ols(
        tested,
        maps,
        confounds if confounds.size else None,
        n_perm=permutations,
        random_state=seed,
        output_type="dict",
    )
    t, design = np.nan_to_num(found["t"][0]), np.column_stack([np.ones(len(maps)), confounds])
    freedom = len(maps) - np.linalg.matrix_rank(design) - 1
    size = _groups_differ if name in GROUPS else _correlate
    own = tested - design @ np.linalg.lstsq(design, tested, rcond=None)[0]
    effect, low, high = size(t, freedom, 1 / (own @ own))
    p = 2 * stats.t.sf(np.abs(t), freedom)
    return {
        "effect": effect, "low": low, "high": high, "p": p,
        "q": stats.false_discovery_control(p), "pfwe": 10 ** -found["logp_max_t"][0],
    }  # fmt: skip


def _groups_differ(t: np.ndarray, freedom: int, variance: float) -> tuple:
    """Return Hedges' g and its interval; `variance` is that of the difference over the SD."""
    shrink = 1 - 3 / (4 * freedom - 1)
    d = t * np.sqrt(variance)
    spread = freedom / (freedom - 2) * (variance + d**2) - (d / shrink) ** 2
    reach = stats.norm.isf(0.025) * shrink * np.sqrt(spread)
    return shrink * d, shrink * d - reach, shrink * d + reach


def _correlate(t: np.ndarray, freedom: int, _: float) -> tuple:
    """Return the partial correlation and its interval by Fisher's z."""
    r = t / np.sqrt(t**2 + freedom)
    reach = stats.norm.isf(0.025) / np.sqrt(freedom - 1)
    return r, np.tanh(np.arctanh(r) - reach), np.tanh(np.arctanh(r) + reach)
