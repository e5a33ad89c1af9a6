"""A person's regions: how far each departs, its centile among euploids, and a conformal bound."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import bids
from dsnb.anomaly.people import People, region_weights
from dsnb.anomaly.tuning import FittedNorm
from dsnb.norms import Normative
from dsnb.space import REGIONS

LEVEL = 0.95
FEWEST = 19  # the smallest cell whose largest value bounds 95 % of new people
COLUMNS = {
    "region": "region of the template, soft-edged", "departure": "mean departure from the norm, {}",
    "z": "that mean over its predictive SD in euploids",
    "centile": "of that z among calibration euploids",
    "bound": "|z| that at most 5 % of new euploids of this sex exceed in this region (split "
             "conformal); n/a where fewer than 19 calibration euploids share the sex",
    "outside": "whether |z| exceeds the bound",
}  # fmt: skip


@dataclass(frozen=True)
class Ruler:
    """Region means of a norm's departures, unsmoothed, and what euploids have there.

    `normative` standardises means on scale people; `known` are sorted z (M, R) of calibration
    people. A bound is the split conformal one (Vovk et al. 2005; Mondrian by sex): the k-th
    smallest |z|, k = ceil(0.95 (n + 1)), is exceeded in one region by at most 5 % of new
    exchangeable people, on average over calibration people, for any distribution.
    """

    norm: FittedNorm
    normative: Normative
    known: np.ndarray
    bounds: dict[str, np.ndarray]

    @classmethod
    def fit(cls, norm: FittedNorm, scale: People, people: People, table: pd.DataFrame) -> "Ruler":
        """Fit on scale people and on calibration people with their table.

        A sex with fewer than 19 of them has no bound (NaN).
        """
        normative = Normative.fit(region_means(norm, scale), scale.covariates)
        z = normative.z(region_means(norm, people), people.covariates)
        sexes = table["sex"].to_numpy(str)
        bounds = {sex: bound(np.abs(z[sexes == sex])) for sex in ("F", "M")}
        return cls(norm, normative, np.sort(z, axis=0), bounds)

    def departures(self, people: People) -> np.ndarray:
        """Return region means (N, R) less what age and sex predict, in the norm's unit."""
        return self.normative.residual(region_means(self.norm, people), people.covariates)

    def measure(self, people: People, table: pd.DataFrame) -> pd.DataFrame:
        """Return one row a person and region, columns as in COLUMNS."""
        mean = self.departures(people)
        z = mean / self.normative.spread(people.covariates)
        mean = 100 * np.expm1(mean) if self.norm.candidate.of_volume else mean
        below = [np.searchsorted(known, values) for known, values in zip(self.known.T, z.T)]
        centiles = 100 * (np.stack(below, 1) + 0.5) / (len(self.known) + 1)
        bounds = np.stack([self.bounds[sex] for sex in table["sex"].to_numpy(str)])
        outside = np.where(np.isnan(bounds), None, np.abs(z) > bounds)
        long = table[["participant_id", "group", "kind"]]
        long = long.loc[long.index.repeat(len(REGIONS))].reset_index(drop=True)
        return long.assign(
            region=np.tile(REGIONS, len(z)), departure=mean.ravel().round(4), z=z.ravel().round(4),
            centile=centiles.ravel().round(1), bound=bounds.ravel().round(4),
            outside=outside.ravel(),
        )  # fmt: skip


def region_means(norm: FittedNorm, people: People) -> np.ndarray:
    """Return the mean unsmoothed departure of every person and region, (N, R)."""
    return norm.departures(people, 0) @ region_weights(people.regions).T


def bound(sizes: np.ndarray) -> np.ndarray:
    """Return the conformal bound (R,) of calibration sizes (M, R), NaN below 19 people."""
    if len(sizes) < FEWEST:
        return np.full(sizes.shape[1], np.nan)
    return np.sort(sizes, axis=0)[int(np.ceil(LEVEL * (len(sizes) + 1))) - 1]


def repeatability(sessions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ICC and smallest detectable change (K,) of measures in S sessions of N people.

    `sessions` is (S, N, K). ICC(2,1) is that of single measures and absolute agreement (Shrout and
    Fleiss 1979); a change between two sessions beyond 1.96 sqrt(2) SEM is no error of measurement
    (95 %), the SEM holding the differences between sessions, too.
    """
    count, people = sessions.shape[:2]
    mean = sessions.mean((0, 1))
    rows = count * ((sessions.mean(0) - mean) ** 2).sum(0) / (people - 1)
    columns = people * ((sessions.mean(1) - mean) ** 2).sum(0) / (count - 1)
    rest = sessions - sessions.mean(0) - sessions.mean(1)[:, None] + mean
    error = (rest**2).sum((0, 1)) / ((people - 1) * (count - 1))
    icc = (rows - error) / (rows + (count - 1) * error + count * (columns - error) / people)
    within = sessions.var(0, ddof=1).mean(0)
    return icc, 1.96 * np.sqrt(2 * within)


def flagged(measured: list[pd.DataFrame]) -> list[dict]:
    """Return for each set of people the share of person-region cells outside of their bound."""
    rows = []
    for table in measured:
        known = table.dropna(subset="bound")
        first = table.iloc[0]
        rows.append({
            "people_of": f"{first['group']} {first['kind']}", "cells": len(known),
            "outside_share": float(known["outside"].astype(float).mean()) if len(known) else None,
            "refused": len(table) - len(known),
        })  # fmt: skip
    return rows


def write(folder: Path, measured: list[pd.DataFrame], of_volume: bool) -> None:
    """Write regions.tsv and what its columns hold."""
    unit = "% of local volume" if of_volume else "intensity (white matter near 0.85)"
    bids.write_table(folder / "regions.tsv", pd.concat(measured, ignore_index=True))
    columns = {name: text.format(unit) for name, text in COLUMNS.items()}
    bids.write_dictionary(folder / "regions.json", columns)
