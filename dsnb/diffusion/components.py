"""The product `components`: what is drawn of latents, and from whom it is learnt.

A flow that has learnt nothing yet: basis, remainder, gain, and the effects of conditions.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA

from dsnb import bids, dataset, further, latents, record, rivals, space, vae
from dsnb.config import Diffusion, Study
from dsnb.diffusion import remainder
from dsnb.diffusion.flow import Flow, Teachers, build, condition
from dsnb.diffusion.samplers import draw

CODE = ("diffusion", "dataset", "latents", "further", "rivals", "vae/metrics")
OF_NETWORK = ("basis", "denoiser", "width", "blocks", "prediction")  # what a checkpoint must know
SHOWN = 60  # components of public people's volumes, whose latent directions are drawn
STEP = 2.0  # SD of a component, to either side, in which a response is measured
RIDGE = 0.03  # log volume an SD, below which a direction counts as moving no region [E]
ROUNDS, PAIRS = 3, 16  # corrections of the effects, and drawn pairs behind each
FEWEST_DS = 4  # below this the group is a constant


def generator_rows(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that train the flow and those that choose when to stop.

    With fewer than `FEWEST_DS` people with DS it learns euploids alone; that is said.
    """
    fit, held = (dataset.select(table, "euploid", split) for split in ("fit", "validation"))
    ds = dataset.select(table, "DS", "generator-fit")
    if len(ds) < FEWEST_DS:
        record.say(f"diffusion: {len(ds)} people with DS, {FEWEST_DS} needed: euploids alone")
        return fit, held
    held_ds = dataset.select(table, "DS", "validation")
    return np.concatenate([fit, ds]), np.concatenate([held, held_ds])


def teachers(z: np.ndarray, table: pd.DataFrame, volumes: pd.DataFrame | None = None) -> Teachers:
    """Return people with their log region volumes (none without a table of ml by person)."""
    logs = np.zeros((len(table), 0))
    if volumes is not None:
        logs = np.log(volumes.loc[table["participant_id"], list(space.REGIONS)].to_numpy(float))
    return Teachers(np.asarray(z), table, logs)


def measure_gain(root: Path, study: Study) -> dict[str, np.ndarray]:
    """Return what sharpens the VAE's drawing of validation people, whom no network learnt from."""
    rows = generator_rows(dataset.load_table(root))[1]
    given = dataset.load_volumes(root)[rows].astype(np.float32)
    drawn = vae.reconstruct(vae.load(root), given)
    return remainder.fit_gain(given, drawn, space.load_template(study.grid).brain)


class Ruler:
    """Draws brains of a flow and measures their log regions by registration to the template."""

    def __init__(self, root: Path, study: Study, flow: Flow):
        self.study, self.flow, self.decoder = study, flow, vae.load(root)
        self.template = rivals.load_template(root)

    def measure(self, z: torch.Tensor) -> np.ndarray:
        """Return log region volumes (N, R) of latents (N, C, d, h, w)."""
        drawn = self.flow.finish(vae.decode(self.decoder, z.numpy()))
        return vae.region_logs(rivals.without_halo(drawn), self.template, self.study)

    def response(self) -> np.ndarray:
        """Return what an SD along each moved direction does to log region volumes, (D, R)."""
        steps = STEP * self.steps() / self.flow.spread
        logs = self.measure(self.flow.expand(torch.cat([steps, -steps])))
        return (logs[: len(steps)] - logs[len(steps) :]) / (2 * STEP)

    def steps(self) -> torch.Tensor:
        """Return an SD along each moved direction, in latents' units of the components (D, K)."""
        moved = self.flow.moved
        return moved * (moved * self.flow.spread).norm(dim=1, keepdim=True)

    def effect(self, table: pd.DataFrame) -> np.ndarray:
        """Return what DS does to log regions (R,): each of `table` drawn with and without it."""
        pair = [table, table.assign(group="euploid", stage="n/a")]
        z = torch.cat([draw(self.flow, condition(some), 0, 10) for some in pair])
        logs = self.measure(z)
        return (logs[: len(table)] - logs[len(table) :]).mean(0)


def set_region_effects(ruler: Ruler, some: Teachers) -> list[float]:
    """Correct the effect of DS along the moved directions until regions change as in `some` people.

    Least squares leave a part of the groups' difference outside a few directions. A round draws
    pairs, measures them, and corrects by the damped response; returns the gap (log volume, root
    mean square over regions) before each round.
    """
    flow, ds = ruler.flow, (some.table["group"] == "DS").to_numpy()
    if not ds.any() or ds.all():
        return []
    design = np.column_stack([ds, np.ones(len(ds)), space.covariates(some.table)]).astype(float)
    wanted = np.linalg.lstsq(design, some.regions, rcond=None)[0][0]
    left, sizes, right = np.linalg.svd(ruler.response(), full_matrices=False)
    back = right.T @ np.diag(sizes / (sizes**2 + RIDGE**2)) @ left.T
    rows, gaps = np.flatnonzero(ds), []
    drawn = some.table.iloc[rows[:: max(1, len(rows) // PAIRS)]]
    for _ in range(ROUNDS):
        lacking = wanted - ruler.effect(drawn)
        gaps.append(float(np.sqrt((lacking**2).mean())))
        more = torch.from_numpy(lacking @ back).float() @ ruler.steps() / flow.spread
        flow.effects[0] += more * flow.condition_sd[0]
    return gaps


def shown_directions(decoder: vae.NormativeVae, z: np.ndarray, volumes: np.ndarray) -> np.ndarray:
    """Return the latent directions (S, C, d, h, w) that principal components of volumes read.

    The gradient, at the mean latent of these people, of the component's score of what is decoded.
    Components of latents alone miss some of it: they weigh a latent by its variance.
    """
    support = decoder.support[0, 0].bool().numpy()
    pca = PCA(min(SHOWN, len(z) // 4), random_state=0, svd_solver="randomized")
    pca.fit(volumes[:, support].astype(np.float32))
    middle = torch.from_numpy(z.mean(0, keepdims=True)).requires_grad_()
    drawn = decoder.decode(middle)[0, 0][decoder.support[0, 0].bool()]
    scores = torch.from_numpy(pca.components_) @ drawn
    found = [torch.autograd.grad(score, middle, retain_graph=True)[0][0] for score in scores]
    return torch.stack(found).numpy()


def make(root: Path, study: Study) -> None:
    """Make the product `components` of the generator's people and of an open cohort.

    Beside real scans there is no open cohort of their kind: components come from the people
    themselves, who can then be told by them; that is said.
    """
    settings = study.diffusion
    wanted = settings.basis == "public"
    public = wanted and record.read_mark(root)["data"] == "phantom"
    parents = ("prepared", "latents", "runs/vae")
    if public:
        further.encode(root, study)
        rivals.register(root, study)
        parents += (further.LATENTS, "deformation")
    note = {name: getattr(settings, name) for name in ("basis", "components")}
    note |= {"seed": settings.training.seed, "public": public}
    product = record.begin(root, "components", "train diffusion", note, parents, CODE)
    if product.done:
        return
    table, z, _, statistics = latents.load(root)
    rows, others, volumes = generator_rows(table)[0], None, None
    if wanted and not public:
        record.say("diffusion: no open cohort beside real scans: components come from its people")
    if public:
        some, scans, known = further.load(root, study)
        open_ = np.flatnonzero(some["role"] == "public")
        others = known[open_], shown_directions(vae.load(root), known[open_], scans[open_])
        volumes = bids.typed(bids.read_table(root / "deformation/volumes.tsv"))
        volumes = volumes.set_index("participant_id")
    fit = teachers(z[rows], table.iloc[rows], volumes)
    fine = measure_gain(root, study)
    flow = build(settings, fit, statistics, study.grid.affine, others, fine)
    gaps = set_region_effects(Ruler(root, study, flow), fit) if others is not None else []
    state = {key: value.numpy() for key, value in flow.state_dict().items() if "net." not in key}
    np.savez(product.folder / "flow.npz", **state)
    record.write_json(product.folder / "gaps.json", gaps)
    product.finish()


def load(root: Path, settings: Diffusion) -> Flow:
    """Return the untrained flow of the product `components`."""
    record.require(root, "components")
    with np.load(root / "components" / "flow.npz", allow_pickle=False) as file:
        return restore(settings, {name: torch.as_tensor(file[name]) for name in file})


def restore(settings: Diffusion, state: dict) -> Flow:
    """Return the flow of a state; one without a network has an untrained one."""
    shape, frequencies = tuple(state["latent_shape"].tolist()), len(state["gain"])
    moved = len(state["moved"])
    flow = Flow(settings, len(state["spread"]), shape, frequencies, moved)
    flow.load_state_dict(state, strict=any(key.startswith("net.") for key in state))
    return flow
