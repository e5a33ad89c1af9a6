"""Phantom people without pictures: everybody's table and volumes, and stand-ins for what is seen.

Rendering a cohort takes minutes, drawing it a fraction of a second. The registration is a normal
error of every region; latents, voxels and `undone` are random mixtures of the true volumes with a
noise of their own, as large as page 06's AUROC suggests.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsnb import rivals
from dsnb.config import Cohort
from dsnb.fidelity import morphology
from dsnb.phantom import fields, people
from dsnb.space import REGIONS, Grid
from dsnb.strata.people import relative

ERROR = 0.04  # SD of a registered log volume [E]
COLUMNS = 64  # of a stand-in
NOISE = {"undone": 0.6, "latents": 1.2, "voxels": 4.0}  # SD of each column, in people's SD [E]


class Seen(NamedTuple):
    """N people: table, true log ml (N, R), the same as registered, stand-ins (N, COLUMNS)."""

    table: pd.DataFrame
    true: np.ndarray
    logs: np.ndarray
    sets: dict[str, np.ndarray]

    def take(self, rows: np.ndarray) -> "Seen":
        """Return these rows."""
        sets = {name: values[rows] for name, values in self.sets.items()}
        table = self.table.iloc[rows].reset_index(drop=True)
        return Seen(table, self.true[rows], self.logs[rows], sets)

    def join(self, others: "Seen") -> "Seen":
        """Return these people and others after them."""
        table = pd.concat([self.table, others.table], ignore_index=True)
        true, logs = (np.concatenate(pair) for pair in zip(self[1:3], others[1:3]))
        sets = {k: np.concatenate([of, others.sets[k]]) for k, of in self.sets.items()}
        return Seen(table, true, logs, sets)

    @property
    def ds(self) -> np.ndarray:
        """Say who has DS, (N,) bool."""
        return (self.table["group"] == "DS").to_numpy()

    @property
    def shares(self) -> np.ndarray:
        """Return log shares of the registered volumes (N, R), size removed."""
        return relative(np.exp(self.logs))

    def shape(self) -> morphology.People:
        """Return the people as page 08 compares them."""
        volumes = pd.DataFrame(np.exp(self.logs), columns=list(REGIONS))
        return morphology.people(
            self.table, volumes.assign(participant_id=self.table["participant_id"])
        )


@cache
def _template_logs(grid: Grid) -> np.ndarray:
    return np.log(rivals.region_volumes(np.zeros((1, *grid.shape), np.float32), grid)[0])


def true_logs(table: pd.DataFrame, seed: int, grid: Grid) -> np.ndarray:
    """Return the wanted log volumes (N, R) of `people.individual_velocities` and the disease."""
    known, drawn = fields.CONSTANTS, []
    ds, ages = (table["group"] == "DS").to_numpy(), table["age"].to_numpy(float)
    for row in table.to_dict("records"):
        rng = people.stream(seed, row, "regions")
        rng.normal(0, people.AXES_SD, (3, 1, 1, 1))  # the head's axes come first
        drawn.append(people.draw_regions(rng))
    spread = (
        np.tile(known["spread"], (len(table), 1)) * np.where(ds, people.DS_VARIABILITY, 1)[:, None]
    )
    spread[ds, REGIONS.index("ventricles")] *= people.DS_VENTRICLES
    logs = _template_logs(grid) + spread * np.stack(drawn)
    logs = logs + np.outer((np.maximum(ages, 30) - 30) / 10, known["decade"])
    logs = logs + np.outer(np.where(table["sex"] == "M", 0.5, -0.5), known["male"])
    ill = table.loc[ds, ["progress", "factor"]].to_numpy(float)
    logs[ds] += [fields.targets(*one) for one in ill]
    return logs


def see(table: pd.DataFrame, true: np.ndarray, seed: int, grid: Grid) -> Seen:
    """Return what registration and stand-ins see of true log volumes (N, R)."""
    rng = np.random.default_rng([seed, 97])
    loadings = np.random.default_rng(0).standard_normal((len(REGIONS), COLUMNS)) / 4
    columns = (true - _template_logs(grid)) / fields.CONSTANTS["spread"].to_numpy() @ loadings
    logs = true + ERROR * rng.standard_normal(true.shape)
    sets = {name: columns + sd * rng.standard_normal(columns.shape) for name, sd in NOISE.items()}
    return Seen(table, true, logs, sets)


def draw(settings: Cohort, grid: Grid) -> Seen:
    """Draw a cohort, euploids first, as the phantom would before it renders anybody."""
    table = people.draw_people(settings).assign(seen_by="n/a")
    return see(table, true_logs(table, settings.seed, grid), settings.seed, grid)
