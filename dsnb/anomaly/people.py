"""What the norms read of a person, and the candidates: which norm, compared with what."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from dsnb import dataset, latents, rivals, vae
from dsnb.anomaly import undo
from dsnb.config import Study
from dsnb.norms import ComponentNorm
from dsnb.space import REGIONS, Grid, covariates, load_template, region_masks

TISSUES = np.array([[0.2], [0.55], [0.85]])  # CSF, grey and white matter on the anchored scale
PARCELS = 16  # of each of three tissues [E]
GREY = 1  # the place of grey matter among means in rising order
MIXED = 8  # every eighth voxel suffices for three means


@dataclass(frozen=True)
class Candidate:
    """One way to a departure map: the features of its norm, and what the norm is compared with.

    `features` and `against` name fields of People; `against` is "decoded" for a latent's own
    decoding, "undone" for what the network of `undo` finds. `free` says whether the number of
    components is tuned (0 otherwise).
    """

    name: str
    features: str
    against: str
    free: bool
    deep: bool

    @property
    def of_volume(self) -> bool:
        """Say whether the map holds log local volume, which lies on the template's grid."""
        return self.against in ("log_jacobian", "regional", "parcelled", "undone")


PRIMARY = "undo"  # of the deep ones; see the departures in book/analysis_plan.md
CANDIDATES = (
    Candidate("undo", "undone", "undone", False, True),
    Candidate("latent", "latents", "decoded", True, True),
    Candidate("restoration", "latents", "volumes", True, True),
    Candidate("image", "volumes", "volumes", False, False),
    Candidate("pca", "volumes", "volumes", True, False),
    Candidate("tbm", "log_jacobian", "log_jacobian", False, False),
    Candidate("tbm_pca", "log_jacobian", "log_jacobian", True, False),
    Candidate("regions", "regional", "regional", False, False),
    Candidate("parcels", "parcelled", "parcelled", False, False),
    Candidate("vbm", "grey", "grey", False, False),
)
BY_NAME = {candidate.name: candidate for candidate in CANDIDATES}


@dataclass(frozen=True)
class People:
    """What a norm may read of N people: brain voxels (N, V), latents (N, L), covariates (N, K).

    `regions` (R, V) are the template's soft region masks. `points` (N, 3, V) says where in the
    template each voxel of the person's brain lies, in voxels; None where nobody asks for maps of
    volume in the person's own grid. `networks` decodes latents and undoes changes, where asked.
    """

    covariates: np.ndarray
    volumes: np.ndarray
    latents: np.ndarray
    log_jacobian: np.ndarray
    regions: np.ndarray
    points: np.ndarray | None = None
    networks: "Source | None" = None
    expected: dict = field(default_factory=dict)

    @cached_property
    def decoded(self) -> np.ndarray:
        """Return what the latents decode to, (N, V)."""
        return self.networks.decode(self.latents)

    @cached_property
    def undone(self) -> np.ndarray:
        """Return the log volume changes that the network of `undo` sees, (N, V)."""
        return self.networks.undo(self.log_jacobian, self.covariates)

    @cached_property
    def regional(self) -> np.ndarray:
        """Return each region's mean log-Jacobian painted into its voxels, (N, V); 0 in no region.

        Voxels of two regions get their mean by membership.
        """
        means = self.log_jacobian @ region_weights(self.regions).T
        return means @ (self.regions / np.maximum(self.regions.sum(0), 1))

    @cached_property
    def parcelled(self) -> np.ndarray:
        """Return each parcel's mean log-Jacobian in its voxels, (N, V)."""
        parcels = self.networks.parcels
        return (self.log_jacobian @ region_weights(parcels).T) @ parcels

    @cached_property
    def grey(self) -> np.ndarray:
        """Return the density of grey matter, (N, V)."""
        return grey_matter(self.volumes)


def grey_matter(volumes: np.ndarray) -> np.ndarray:
    """Return the probability (N, V) that a brain voxel is grey matter (Ashburner and Friston 2000).

    Three Gaussians are fitted to each person's intensities (N, V), so that a site's contrast is
    taken up by the person's own means. What was stripped away (intensity near 0) is none.
    """
    found = np.zeros(volumes.shape, np.float32)
    for row, values in enumerate(volumes):
        tissue = values[values > rivals.HALO, None]
        mixture = GaussianMixture(len(TISSUES), means_init=TISSUES, reg_covar=1e-4, random_state=0)
        mixture.fit(tissue[::MIXED])
        grey = np.argsort(mixture.means_[:, 0])[GREY]
        found[row, values > rivals.HALO] = mixture.predict_proba(tissue)[:, grey]
    return found


def draw_parcels(grid: Grid) -> np.ndarray:
    """Return masks (P, V) of parcels of the template, each of one tissue and of both sides.

    No atlas draws them: in each tissue they are clusters of the places of its voxels.
    """
    template, mm = load_template(grid), grid.coordinates_mm()
    tissues = np.stack([template.csf, template.gm, template.wm])[:, template.brain].argmax(0)
    places = mm[:, template.brain].T
    places[:, 0] = np.abs(places[:, 0])  # left as right
    parcels = np.zeros((3 * PARCELS, len(places)), np.float32)
    for tissue in range(3):
        inside = np.flatnonzero(tissues == tissue)
        found = KMeans(PARCELS, n_init=1, random_state=0).fit_predict(places[inside])
        parcels[found + PARCELS * tissue, inside] = 1
    return parcels


def region_weights(masks: np.ndarray) -> np.ndarray:
    """Return the weights (R, V) that make region means of soft masks (R, V)."""
    return masks / np.maximum(masks.sum(1, keepdims=True), 1e-6)


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
    candidate: Candidate, maps: np.ndarray, points: np.ndarray | None, brain: np.ndarray,
    outside: float = 0, order: int = 1,
) -> np.ndarray:  # fmt: skip
    """Return maps (N, V) where the truth is: in the grid of the people whose `points` are given.

    Maps of volume lie on the template's grid and have to move; the others are there already.
    `outside` is what a map says beyond the brain, which the rim is mixed with: 0 for z, 1 for q;
    `order` 0 takes the nearest value, so that a q is one that was computed.
    """
    if not candidate.of_volume:
        return maps
    moved, volume = np.empty_like(maps), np.full(brain.shape, outside, np.float32)
    for row, (values, places) in enumerate(zip(maps, points)):
        volume[brain] = values
        moved[row] = ndimage.map_coordinates(volume, places, order=order, mode="nearest")
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
        self.undo_net, self.responses = undo.load(root, study), undo.load_responses(root)
        self.truth_table, self.truth = dataset.load_truth(root)
        self.regions = region_masks(study.grid)[:, self.brain]
        self.parcels = draw_parcels(study.grid)

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

    def undo(self, log_jacobian: np.ndarray, covariates: np.ndarray) -> np.ndarray:
        """Return the changes (N, V) that the network sees in log-Jacobians (N, V)."""
        return undo.find(self.undo_net, log_jacobian, covariates)

    def people(self, rows: np.ndarray, moved: bool = False) -> People:
        """Return the people of some rows; `moved` registers them once more.

        The second registration gives the fields, which are too large to be kept for everybody.
        """
        volumes = np.asarray(self.volumes[rows], np.float32)
        z = np.asarray(self.latents[self.order[rows]], np.float32)
        z = z.reshape(len(rows), int(np.prod(z.shape[1:])))  # of nobody, too
        log_jacobian = np.asarray(self.log_jacobian[rows], np.float32)
        points = self._points(volumes)[1] if moved and len(rows) else None
        return self._people(self.table.iloc[rows], volumes, z, log_jacobian, points)

    def truth_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the true log-Jacobians (N, V) of some rows in their own grids."""
        names = pd.Index(self.truth_table["participant_id"])
        where = names.get_indexer(self.table["participant_id"].iloc[rows])
        return np.asarray(self.truth[where], np.float32)[:, self.brain]

    def has_truth(self, rows: np.ndarray) -> bool:
        """Say whether the truth of all rows is known: of a phantom or of planted scans."""
        names = self.table["participant_id"].iloc[rows]
        return bool(names.isin(self.truth_table["participant_id"]).all())

    def region_truth_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the true log change of region volumes (N, R) of some rows, from label volumes."""
        known = self.truth_table.set_index("participant_id")
        known = known.loc[self.table["participant_id"].iloc[rows]]
        before, after = (known[[f"{r}_{when}" for r in REGIONS]] for when in ("before", "after"))
        return np.log(after.to_numpy(float) / before.to_numpy(float))

    def planted(self, rows: np.ndarray, draw: Callable) -> tuple[People, np.ndarray]:
        """Plant what draw(place of the row) gives: the changed people and |truth| (N, V).

        `draw` returns a backward displacement (3, X, Y, Z) in mm and its log volume change.
        """
        changed, truth = [], []
        for number, row in enumerate(rows):
            flow, change = draw(number)
            volume = np.asarray(self.volumes[row], np.float32)
            changed.append(rivals.warp(volume, flow, self.grid.voxel_mm, order=3))
            truth.append(np.abs(change[self.brain]))
        volumes = rivals.without_halo(np.stack(changed))  # a cubic spline rings around the brain
        return self.from_volumes(self.table.iloc[rows], volumes, moved=True), np.stack(truth)

    def from_volumes(self, table: pd.DataFrame, volumes: np.ndarray, moved: bool) -> People:
        """Encode and register other volumes (N, X, Y, Z) of the people in `table`."""
        z = vae.encode(self.model, volumes)[0].reshape(len(volumes), -1)
        if moved:
            return self._people(table, volumes, z, *self._points(volumes))
        found = rivals.register_volumes(volumes, self.template, self.study)
        return self._people(table, volumes, z, found, None)

    def fill(self, values: np.ndarray, outside: float = 0) -> np.ndarray:
        """Return brain values (V,) as a volume (X, Y, Z) with `outside` around the brain."""
        volume = np.full(self.brain.shape, outside, np.float32)
        volume[self.brain] = values
        return volume

    def _points(self, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Register volumes; return log-Jacobians and the template points of their voxels."""
        found, fields = rivals.register_volumes(volumes, self.template, self.study, fields=True)
        start = np.argwhere(self.brain).T.astype(np.float32)
        points = [
            start + rivals.invert_field(u.astype(np.float32), self.grid.voxel_mm)[:, self.brain]
            / self.grid.voxel_mm for u in fields
        ]  # fmt: skip
        return found, np.stack(points)

    def _people(self, table, volumes, z, log_jacobian, points) -> People:
        inside = (slice(None), self.brain)
        parts = volumes[inside], z, log_jacobian[inside], self.regions
        return People(covariates(table), *parts, points, self)
