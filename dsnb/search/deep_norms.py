"""Further deep norms beside those of page 05, from the literature and from the study's own parts.

Each learns on euploid fit people alone, is tuned on the same generic changes as every norm, and is
scored once on the test people with DS; in the ledger.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch.nn import functional

from dsnb import anomaly, checkpoints, dataset, diffusion, record, rivals, training, vae
from dsnb.anomaly import metrics, truth, tuning, undo
from dsnb.anomaly.people import Candidate, People, Source
from dsnb.config import Study, replace
from dsnb.distributed import keyed_noise
from dsnb.norms import generic_change
from dsnb.search import quantised

LEDGER = "05_norms"
CODE = ("space", "rivals", "norms", "latents", "anomaly", "diffusion", "vae/networks", "vae/task",
        "vae/features", "training/state", "search/quantised", "search/deep_norms")  # fmt: skip
RUNS = "runs/norms"
SEEDS = (1, 2, 3)  # of the networks of `undo_three`
SHARES = (0.4, 0.6, 0.8)  # of the way from noise to data that a renewed person has left
STEPS = 10  # of the flow, back to data
FLOW_VOLUMES = 40_000
VOLUMES = ("undo", "tbm", "tbm_pca")  # whose z `mean_volume` averages, on the template's grid
LATENTS = ("latent", "restoration", "renewed", "quantised")  # `mean_latent`, in the person's


@torch.no_grad()
def renew(model: diffusion.Flow, z: torch.Tensor, conditions: torch.Tensor, share: float):
    """Return latents (N, C, d, h, w) noised to `share` of the quarter circle and drawn again.

    At share 1 nothing is noised, at 0 nothing is kept; the noise of a row is keyed by its place.
    """
    start = keyed_noise(model.spread.shape, 0, np.arange(len(z)), 0, z.device, "renew")
    angle = torch.full((len(z),), share * torch.pi / 2, device=z.device)
    y = angle.sin()[:, None] * model.project(z) + angle.cos()[:, None] * start
    kept, stride = torch.ones_like(angle), (1 - share) * torch.pi / 2 / STEPS
    for step in range(STEPS):
        y = y + stride * model(y, angle + (step + 0.5) * stride, conditions, kept)
    return model.expand(y)


@torch.no_grad()
def drawn_volume(model: vae.MorphVae, volumes: np.ndarray, voxel_mm: float) -> np.ndarray:
    """Return the log volume of people over the template that `morph` draws, (N, X, Y, Z).

    Its field says where in the template a person's voxel is read, so growth is a small Jacobian.
    """
    z, found = torch.from_numpy(vae.encode(model, volumes)[0]), []
    for part in vae.batches(len(z)):
        for field in model.displacement(z[part])[0].numpy():
            found.append(-rivals.log_determinant(field * voxel_mm, voxel_mm))
    return np.stack(found)


@torch.no_grad()
def feature_gap(net: vae.FeatureNet, drawn: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return the squared gap (N, 1, X, Y, Z) of unit features, a mean over levels."""
    gaps = []
    for one, other in zip(net(drawn), net(given)):
        one, other = (functional.normalize(part, dim=1) for part in (one, other))
        gap = (one - other).square().sum(1, keepdim=True)
        gaps.append(functional.interpolate(gap, given.shape[2:], mode="trilinear"))
    return sum(gaps) / len(gaps)


@dataclass(frozen=True)
class Seen(People):
    """People with whole volumes (N, X, Y, Z), and what further networks make of them, (N, V)."""

    whole: np.ndarray | None = None

    def __getattr__(self, name: str) -> np.ndarray:
        """Measure once, when a norm asks."""
        if name not in MEASURES:
            raise AttributeError(name)
        found = np.asarray(MEASURES[name](self), np.float32)
        self.__dict__[name] = found if found.ndim == 2 else found[:, self.networks.brain]
        return self.__dict__[name]


def _perceptual(who: Seen) -> np.ndarray:
    """Return residuals weighted by the gap of features between a volume and its decoding."""
    source, found = who.networks, []
    for row in range(len(who.volumes)):
        drawn, given = (
            torch.from_numpy(source.fill(values[row]))[None, None]
            for values in (who.decoded, who.volumes)
        )
        gap = feature_gap(source.nets["features"], drawn, given)[0, 0].numpy()
        found.append(np.abs(who.volumes[row] - who.decoded[row]) * gap[source.brain])
    return np.stack(found)


def _matched(who: Seen) -> np.ndarray:
    """Return intensities matched to the template's histogram, as the registration does."""
    images = (sitk.GetImageFromArray(np.ascontiguousarray(v)) for v in who.whole)
    fixed = sitk.GetImageFromArray(np.ascontiguousarray(who.networks.template))
    matched = (sitk.HistogramMatching(image, fixed, 64, 8) for image in images)
    return np.stack([sitk.GetArrayFromImage(image) for image in matched])


def _renewed(who: Seen, share: float) -> np.ndarray:
    """Return volumes less what they are once noised in part and drawn again as euploids."""
    source = who.networks
    z = torch.from_numpy(who.latents.reshape(-1, *source.latents.shape[1:]))
    conditions = np.zeros((len(z), len(diffusion.CONDITIONS)), np.float32)
    conditions[:, -2:] = who.covariates
    again = renew(source.nets["flow"], z, torch.from_numpy(conditions), share).numpy()
    return who.volumes - source.decode(again.reshape(len(z), -1))


def _undone_by(who: Seen) -> np.ndarray:
    nets = [who.networks.nets[f"undo_{seed}"] for seed in SEEDS]
    return np.mean([undo.find(net, who.log_jacobian, who.covariates) for net in nets], axis=0)


MEASURES: dict[str, Callable[[Seen], np.ndarray]] = {
    "residual": lambda who: who.volumes - who.decoded,
    "perceptual": _perceptual,
    "matched": _matched,
    "quantised": lambda who: who.whole - vae.reconstruct(who.networks.nets["vq"], who.whole),
    **{f"renewed_{share}": lambda who, share=share: _renewed(who, share) for share in SHARES},
    "morph": lambda who: drawn_volume(
        who.networks.nets["morph"], who.whole, who.networks.grid.voxel_mm
    ),
    "undo_three": _undone_by,
}
FREE = ("morph",)  # whose components are tuned, as those of `tbm_pca`


@dataclass(frozen=True)
class Further(Candidate):
    """A candidate whose maps lie on the template's grid only where it reads log-Jacobians."""

    @property
    def of_volume(self) -> bool:
        """Say whether the map lies on the template's grid."""
        return self.name == "undo_three"


class WiderSource(Source):
    """A Source whose people are also seen by further networks, trained where they are missing."""

    def __init__(self, root: Path, study: Study):
        super().__init__(root, study)
        self.nets = load_nets(root, study)

    def _people(self, table, volumes, z, log_jacobian, points) -> Seen:
        plain = super()._people(table, volumes, z, log_jacobian, points)
        return Seen(**vars(plain), whole=volumes)


@dataclass(frozen=True)
class Mean:
    """The mean z of norms that lie on one grid."""

    norms: tuple[tuning.FittedNorm, ...]

    def z(self, people: People) -> np.ndarray:
        """Return the mean z (N, V)."""
        return np.mean([norm.z(people) for norm in self.norms], axis=0)

    def in_own_grid(self, maps: np.ndarray, points: np.ndarray | None) -> np.ndarray:
        """Return maps (N, V) where the truth is."""
        return self.norms[0].in_own_grid(maps, points)


def load_nets(root: Path, study: Study) -> dict:
    """Train what is missing, each a product under `runs/norms`, and return {name: network}."""
    fit, held = (dataset.select(dataset.load_table(root), "euploid", s) for s in
                 ("fit", "validation"))  # fmt: skip
    morph = replace(study, vae=replace(study.vae, architecture="morph"))
    vae.train(root, morph, f"{RUNS}/morph")
    vae.train_features(root, study)
    quantised.train(root, study, f"{RUNS}/quantised")
    plan = replace(study.diffusion.training, volumes=FLOW_VOLUMES, ema=0.999, validate_every=5_000)
    own = replace(study.diffusion, basis="members", components=160, training=plan)
    own = replace(study, diffusion=own)  # it draws nobody: it may know its people by heart
    training.train_product(
        root, f"{RUNS}/flow", "train flow of euploids", asdict(own.diffusion),
        ("latents", "runs/vae"), diffusion.FLOW,
        lambda device: (diffusion.study_task(root, own, device, (fit, held)), plan),
    )  # fmt: skip
    nets = {
        "morph": vae.load(root, f"{RUNS}/morph"), "vq": quantised.load(root, f"{RUNS}/quantised"),
        "features": vae.load_features(root / "runs/features"),
        "flow": diffusion.restore(own.diffusion, checkpoints.require(root / RUNS / "flow")["ema"]),
    }  # fmt: skip
    for seed in SEEDS:
        seeded = replace(study.undo, training=replace(study.undo.training, seed=seed))
        run = undo.RUN if seeded == study.undo else f"{RUNS}/undo_{seed}"
        undo.train(root, replace(study, undo=seeded), run)
        nets[f"undo_{seed}"] = undo.load(root, study, run)
    return nets


def tune_further(source: WiderSource) -> tuple[dict[str, tuning.FittedNorm], list[dict]]:
    """Tune and fit the further norms as those of page 05 are: {name: FittedNorm}, all trials.

    Of the shares of `renewed` the best on generic changes is kept.
    """
    fit, scale = (source.people(source.rows("euploid", part)) for part in ("fit", "scale"))
    rows = np.repeat(source.rows("euploid", "validation"), source.study.maps.changes)
    planted, change = source.planted(rows, lambda n: generic_change(source.brain, source.grid, n))
    fitted, trials = {}, []
    for name in MEASURES:
        candidate = Further(name, name, name, name in FREE, True)
        most = max(source.study.maps.nuisance) if candidate.free else 0
        model = tuning.fit_model(candidate, fit, most)
        found = tuning.tune(candidate, scale, planted, change, model, source)
        choice = max(found, key=lambda trial: trial["lift"])
        fitted[name] = tuning.fit(candidate, model, choice, scale, source)
        trials += found
        record.say(f"{name}: lift {choice['lift']:.3f} of generic changes")
    shares = [f"renewed_{share}" for share in SHARES]
    best = max(shares, key=lambda name: fitted[name].choice["lift"])
    fitted["renewed"] = fitted[best]
    return {name: norm for name, norm in fitted.items() if name not in shares}, trials


def compare(root: Path, study: Study) -> None:
    """Fill the ledger with lift and gain of every norm of page 05 and of the further ones."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    chosen = anomaly.chosen(root, study)
    made_of = {"chosen": chosen, "undo": asdict(study.undo), "vae": asdict(study.vae),
               "diffusion": asdict(study.diffusion)}  # fmt: skip
    task = {**dataset.identify(root), "part": "test people with DS", "seed": 1}
    key = record.row_key(task | {"of": made_of}, CODE)
    if record.find_row(LEDGER, key):
        return
    source = WiderSource(root, study)
    further, trials = tune_further(source)
    fitted = tuning.fit_chosen(source, chosen) | further
    for name, parts in (("mean_volume", VOLUMES), ("mean_latent", LATENTS)):
        fitted[name] = Mean(tuple(fitted[part] for part in parts))
    rows = source.rows("DS", "test")
    people, euploids = (
        source.people(rows, moved=True),
        source.people(source.rows("euploid", "test")),
    )
    changed = np.abs(source.truth_of(rows)) > study.maps.truth_change
    found = {name: truth.score(norm, people, euploids, changed) for name, norm in fitted.items()}
    lifts = {name: own[2] for name, (own, _) in found.items()}
    table = [
        {"norm": name, "further": name not in anomaly.BY_NAME, "people": len(rows)}
        | metrics.mean("lift", lifts[name], study.maps)
        | metrics.mean("gain", lifts[name] - swapped["gain"], study.maps)
        | metrics.mean("above_tbm", lifts[name] - lifts["tbm"], study.maps)
        for name, (_, swapped) in found.items()
    ]  # fmt: skip
    record.add_row(LEDGER, key, {"norms": table, "trials": trials})
