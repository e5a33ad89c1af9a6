"""What the norms read of a person, and the candidates: which norm, compared with what."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from dsnb import dataset, latents, rivals, vae
from dsnb.config import Study
from dsnb.norms import ComponentNorm, generic_change
from dsnb.space import covariates, load_template


@dataclass(frozen=True)
class Candidate:
    """One way to a departure map: the features of its norm, and what the norm is compared with.

    `features` and `against` name fields of People; `against` is "decoded" for a latent's own
    decoding. `free` says whether the number of components is tuned (0 otherwise).
    """

    name: str
    features: str
    against: str
    free: bool
    deep: bool


PRIMARY = "latent"  # fixed before any test person was scored; all others are secondary
CANDIDATES = (
    Candidate("latent", "latents", "decoded", True, True),
    Candidate("restoration", "latents", "volumes", True, True),
    Candidate("image", "volumes", "volumes", False, False),
    Candidate("pca", "volumes", "volumes", True, False),
    Candidate("tbm", "log_jacobian", "log_jacobian", False, False),
    Candidate("tbm_pca", "log_jacobian", "log_jacobian", True, False),
)


@dataclass(frozen=True)
class People:
    """What a norm may read of N people: brain voxels (N, V), latents (N, L), covariates (N, K).

    `points` (N, 3, V) says where in the template each voxel of the person's brain lies, in
    voxels; None where nobody asks for TBM maps in the person's own grid.
    """

    covariates: np.ndarray
    volumes: np.ndarray
    latents: np.ndarray
    decoded: np.ndarray
    log_jacobian: np.ndarray
    points: np.ndarray | None = None
    expected: dict = field(default_factory=dict)


def fit_norms(people: People, count: int) -> dict[str, ComponentNorm]:
    """Fit one norm per kind of feature on the fit people, with at most `count` components."""
    kinds = sorted({candidate.features for candidate in CANDIDATES})
    return {
        kind: ComponentNorm.fit(getattr(people, kind), people.covariates, count) for kind in kinds
    }


def departures(
    candidate: Candidate, people: People, count: int, norm: ComponentNorm, decode: Callable
) -> np.ndarray:
    """Return what a person has minus what the norm expects, (N, V); `decode` makes voxels.

    Candidates that share features share the expectation too: it is kept in `people.expected`.
    """
    key = candidate.features, count
    if key not in people.expected:
        features = getattr(people, candidate.features)
        expected = norm.expected(features, people.covariates, count)
        people.expected[key] = decode(expected) if candidate.features == "latents" else expected
    return getattr(people, candidate.against) - people.expected[key]


def in_own_grid(
    candidate: Candidate, maps: np.ndarray, people: People, brain: np.ndarray
) -> np.ndarray:
    """Return maps (N, V) in each person's own grid, where the truth is; only TBM has to move."""
    if candidate.against != "log_jacobian":
        return maps
    moved, volume = np.empty_like(maps), np.zeros(brain.shape, np.float32)
    for row, (values, points) in enumerate(zip(maps, people.points)):
        volume[brain] = values
        moved[row] = ndimage.map_coordinates(volume, points, order=1, mode="nearest")
    return moved


class Source:
    """Everything the maps read, cut to the template's brain: rows become `People` on demand."""

    def __init__(self, root: Path, study: Study):
        self.study, self.grid = study, study.grid
        self.brain = load_template(study.grid).brain
        self.table, self.volumes = dataset.load_table(root), dataset.load_volumes(root)
        self.template, self.log_jacobian = rivals.load_deformation(root)
        encoded, mean = latents.load(root)[:2]
        self.order = pd.Index(encoded["participant_id"]).get_indexer(self.table["participant_id"])
        self.latents, self.model = mean, vae.load(root)
        self.truth_table, self.truth = dataset.load_truth(root)

    def rows(self, group: str, *splits: str, kind=dataset.OWN_PEOPLE) -> np.ndarray:
        """Return row numbers of a group in some splits."""
        return dataset.select(self.table, group, *splits, kind=kind)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Decode flat latents (N, L) into brain voxels (N, V)."""
        shaped = z.reshape(len(z), *self.latents.shape[1:])
        found = np.empty((len(z), int(self.brain.sum())), np.float32)  # of nobody, too
        for part in vae.batches(len(z)):
            found[part] = vae.decode(self.model, shaped[part])[:, self.brain]
        return found

    def people(self, rows: np.ndarray, decoded: bool = True, moved: bool = False) -> People:
        """Return the people of some rows, `decoded` or not; `moved` registers them once more.

        The second registration gives the fields, which are too large to be kept for everybody.
        """
        volumes = np.asarray(self.volumes[rows], np.float32)
        z = np.asarray(self.latents[self.order[rows]], np.float32).reshape(len(rows), -1)
        log_jacobian = np.asarray(self.log_jacobian[rows], np.float32)
        points = self._points(volumes)[1] if moved and len(rows) else None
        return self._people(self.table.iloc[rows], volumes, z, log_jacobian, points, decoded)

    def truth_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the true log-Jacobians (N, V) of some rows in their own grids."""
        names = pd.Index(self.truth_table["participant_id"])
        where = names.get_indexer(self.table["participant_id"].iloc[rows])
        return np.asarray(self.truth[where], np.float32)[:, self.brain]

    def planted(self, rows: np.ndarray) -> tuple[People, np.ndarray]:
        """Plant generic changes on some rows: the changed people and |truth| (N, V)."""
        rows, changed, truth = np.repeat(rows, self.study.maps.changes), [], []
        for number, row in enumerate(rows):
            flow, change = generic_change(self.brain, self.grid, number)
            volume = np.asarray(self.volumes[row], np.float32)
            changed.append(rivals.warp(volume, flow, self.grid.voxel_mm, order=3))
            truth.append(np.abs(change[self.brain]))
        volumes = np.stack(changed)
        z = vae.encode(self.model, volumes)[0].reshape(len(rows), -1)
        people = self._people(self.table.iloc[rows], volumes, z, *self._points(volumes))
        return people, np.stack(truth)

    def _points(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Register volumes; return log-Jacobians and the template points of their voxels."""
        found, fields = rivals.register_volumes(volumes, self.template, self.study, fields=True)
        start = np.argwhere(self.brain).T.astype(np.float32)
        points = [
            start + rivals.invert_field(u.astype(np.float32), self.grid.voxel_mm)[:, self.brain]
            / self.grid.voxel_mm for u in fields
        ]  # fmt: skip
        return found, np.stack(points)

    def _people(self, table, volumes, z, log_jacobian, points, decoded=True) -> People:
        inside = (slice(None), self.brain)
        own = self.decode(z if decoded else z[:0])
        return People(covariates(table), volumes[inside], z, own, log_jacobian[inside], points)
