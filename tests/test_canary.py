"""S02: nothing that is fitted moves when test people's scans are multiplied by 1000."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from dsnb import bids, dataset, fidelity, latents, record, rivals, vae
from dsnb.anomaly import people, tuning, undo
from dsnb.anomaly.people import Source
from dsnb.config import Maps, Undo, replace
from dsnb.diffusion import components
from dsnb.fidelity.realism import fit_features
from dsnb.norms import Calibration, ComponentNorm

CANARY = 1000
TESTED = ("test", "truth", "sham", "repeat", "native")
SHORT = replace(tiny.STUDY.vae.training, volumes=48, checkpoint_every=48, validate_every=48)
STUDY = replace(
    tiny.STUDY,
    vae=replace(tiny.STUDY.vae, training=SHORT),
    maps=Maps(
        nuisance=(0, 4), smoothing_mm=(0.0,), demons_iterations=2, template_people=8,
        template_rounds=1, processes=1,
    ),
    undo=Undo(24, (4, 4), replace(SHORT, batch=4)),
    # Public people are of no split; the generator's own are those who could be test people.
    diffusion=replace(tiny.STUDY.diffusion, basis="members"),
)  # fmt: skip
CPU = torch.device("cpu")


def make_root(root: Path, factor: float) -> Path:
    """Write tiny prepared people, test people's volumes times `factor`, and train the VAE."""
    record.write_json(root / "study.json", {"preset": "smoke", "data": "phantom"})
    product, table = record.begin(root, "prepared", "prepare", {}, (), ("space",)), tiny.people()
    table["stage"] = bids.MISSING
    volumes = tiny.volumes(table)
    volumes[table["split"].isin(TESTED)] *= np.float16(factor)
    np.save(product.folder / "volumes.npy", volumes)
    np.save(product.folder / "truth.npy", volumes[:0])
    bids.write_table(product.folder / "participants.tsv", table)
    bids.write_table(product.folder / "truth.tsv", table[["participant_id"]].head(0))
    product.finish()
    vae.train(root, STUDY)
    latents.encode(root, STUDY)
    undo.train(root, STUDY)
    return root


@pytest.fixture(autouse=True)
def few_parcels(monkeypatch) -> None:
    """Draw no more parcels than a tissue of these tiny volumes has voxels."""
    monkeypatch.setattr(people, "PARCELS", 2)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> tuple[Path, Path]:
    """Return two studies that differ in the test people's scans alone."""
    folder = tmp_path_factory.mktemp("canary")
    return make_root(folder / "sound", 1), make_root(folder / "canary", CANARY)


def fit_mean(root: Path) -> list:
    """Fit the mean volume that the VAE departs from."""
    return [vae.VaeTask(root, STUDY.vae, CPU).model.mean_volume]


def fit_weights(root: Path) -> list:
    """Train the VAE itself."""
    return list(vae.load(root).state_dict().values())


def fit_latent_scale(root: Path) -> list:
    """Fit mean and SD of the latents."""
    shutil.rmtree(root / "latents")
    latents.encode(root, STUDY)
    statistics = latents.load(root)[3]
    return [statistics["mean"], statistics["std"]]


def fit_flow(root: Path) -> list:
    """Fit components, conditions and effects of the diffusion model."""
    torch.manual_seed(0)
    shutil.rmtree(root / "components", ignore_errors=True)
    components.make(root, STUDY)
    return list(components.load(root, STUDY.diffusion).state_dict().values())


def fit_template(root: Path) -> list:
    """Fit the template of the registrations."""
    shutil.rmtree(root / "template")
    rivals.make_template(root, STUDY)
    return [rivals.load_template(root)]


def fit_norms(root: Path) -> list:
    """Fit spread, choices and calibration of every norm of the anomaly maps."""
    source = Source(root, STUDY)
    fitted = tuning.fit_all(source)[0].values()
    arrays = [part for norm in fitted for part in vars(norm.normative).values()]
    known = source.people(source.rows("euploid", "calibration"))
    for norm in fitted:
        calibration = Calibration.fit(norm.z(known), norm.normative.freedom, STUDY.maps.q)
        arrays += vars(calibration).values()
    return [*arrays, [list(norm.choice.values())[1:] for norm in fitted]]


def fit_undo(root: Path) -> list:
    """Plant changes, and train the network that undoes them, with its own age and sex effects."""
    for name in (undo.PLANTED, undo.RUN):
        shutil.rmtree(root / name)
    undo.train(root, STUDY)
    return list(undo.load(root, STUDY).state_dict().values())


def fit_component_norm(root: Path) -> list:
    """Fit age, sex and components of voxels."""
    source = Source(root, STUDY)
    people = source.people(source.rows("euploid", "fit"))
    return list(vars(ComponentNorm.fit(people.volumes, people.covariates, 4)).values())


def fit_feature_space(root: Path) -> list:
    """Fit features on the people who teach those of fidelity (voxels are taught by others)."""
    rows = np.concatenate([*fidelity.generator_people(dataset.load_table(root)).values()])
    pca = fit_features(dataset.load_volumes(root)[rows], STUDY.grid, 4)
    return [pca.mean_, pca.components_, pca.explained_variance_]


STAGES = {
    "mean volume": fit_mean, "latent scale": fit_latent_scale, "flow": fit_flow,
    "template": fit_template, "component norm": fit_component_norm, "norms": fit_norms,
    "feature space": fit_feature_space, "undo": fit_undo,
}  # fmt: skip


def leaking(roots: tuple[Path, Path], stages: dict) -> list[str]:
    """Return the names of the stages whose fitted constants the canary moves, by a single bit."""
    return [
        name
        for name, fit in stages.items()
        if not all(np.array_equal(one, other) for one, other in zip(*map(fit, roots)))
    ]


def test_s02_no_fitted_constant_sees_test_people(roots):
    """Falls: that every normaliser, component, scale and weight is fitted on its own people."""
    assert leaking(roots, {"weights": fit_weights} | STAGES) == []


@pytest.mark.parametrize("stage", STAGES)
def test_s02_a_stage_fitted_on_everybody_is_named(stage, roots, monkeypatch):
    """Falls: that the canary would sing; each stage is made to fit on everybody once."""
    whole = dataset.select

    def everybody(table, group, *splits, kind=dataset.OWN_PEOPLE):
        return whole(table, group, kind=kind)

    monkeypatch.setattr(dataset, "select", everybody)
    assert leaking(roots, {stage: STAGES[stage]}) == [stage]
