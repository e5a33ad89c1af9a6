"""A norm as one file: what it expects, how far euploids depart, the VAE, and where it comes from.

The file is safetensors: plain arrays and one JSON text, nothing that could run. Maps of volume by
`tbm` or `regions` alone fit into it: their norms are linear and keep no person's components.
"""

import difflib
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dsnb import anomaly, checkpoints, latents, record, rivals, vae
from dsnb.anomaly import maps, tuning
from dsnb.anomaly.maps import Reference
from dsnb.anomaly.people import BY_NAME, Source
from dsnb.anomaly.regions import Ruler
from dsnb.anomaly.tuning import FittedNorm
from dsnb.checks import BadInput
from dsnb.config import Study, load_study, replace, vae_settings
from dsnb.norms import Calibration, ComponentNorm, Normative
from dsnb.privacy import gate
from dsnb.space import EUPLOID_SPLITS, Grid, load_template, region_masks
from dsnb.vae import NormativeVae

FOLDER = Path(__file__).parent / "norms"
CODE = ("space", "rivals", "norms")  # what a z of somebody else rests on
PARENTS = ("prepared", "runs/vae", "deformation", "maps")
FITS = ("tbm", "regions")
SINGLE = ("template", "normative.sd", "known", "bounds")  # float16 of these would move a z
SEXES = ("F", "M")
PHANTOM = "the digital phantom of dsnb: brains drawn from one template, nobody's scan"
NOTICE = """
The anatomy is that of the ICBM152 2009a template, as nilearn bundles it: Copyright (C) 1993-2009
Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
Permission to use, copy, modify, and distribute this software and its documentation for any purpose
and without fee is hereby granted, provided that the above copyright notice appear in all copies.
The authors and McGill University make no representations about the suitability of this software
for any purpose. It is provided "as is" without express or implied warranty. The authors are not
responsible for any data loss, equipment damage, property loss, or injury to subjects or patients
resulting from the use or misuse of this software package.
"""
CARD = """# Norm {name}

What a euploid brain of an age and sex looks like, and a VAE of the same people; preset `{preset}`:
{shape} voxels of {mm:g} mm. File: `{name}.safetensors`, {size:.1f} MB. Learnt from {source}.

| | |
| --- | --- |
| norm | {norm}, smoothed {fwhm:g} mm (FWHM) |
| euploids | {people} |
| ages that set the scale | {low:.0f} to {high:.0f} years |
| error | any voxel at q < {rate:g} in at most {guarantee:.3f} of new euploids like these |
| healthy error seen | {error} |
| lift over chance, DS or planted DS | {lift} |
| VAE | {vae}, {channels} latent channels |
| terms | {terms} |
| made by | commit {commit}, settings {settings}, digest {digest} |

It holds: the registration template, the effects of age and sex, the spread of euploids and its
calibration, region bounds, and the VAE with its mean volume and latent statistics. The brain mask
is the template's. Weights and effects are rounded to float16.

A healthy error holds for people like these, on scanners like theirs: elsewhere re-centre it
(`dsnb map --norm {name} --recentre EUPLOIDS.tsv`). Research use, not a diagnosis.
"""


class Shipped(NamedTuple):
    """A loaded norm: maps by `reference`, brains by `vae`, its latents' mean and SD a channel."""

    name: str
    reference: Reference
    vae: NormativeVae
    latent: dict[str, np.ndarray]
    about: dict


class Borrowed(Source):
    """A norm's template and brain, and people (N) registered to it, in place of a study's root."""

    def __init__(self, study: Study, template: np.ndarray):
        self.study, self.grid, self.template = study, study.grid, template
        self.brain = load_template(study.grid).brain
        self.regions = region_masks(study.grid)[:, self.brain]

    def take(self, table: pd.DataFrame, volumes: np.ndarray, log_jacobian: np.ndarray) -> None:
        """Let rows mean these people: volumes and log-Jacobians (N, X, Y, Z); no latents."""
        self.table, self.volumes, self.log_jacobian = table, volumes, log_jacobian
        self.latents, self.order = np.empty((len(table), 0)), np.arange(len(table))


def known_names() -> list[str]:
    """Return the names of the norms that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def _digest(tensors: dict[str, np.ndarray], about: dict) -> str:
    """Return the digest of every array and of what is said about them."""
    plain = {name: record.digest(values) for name, values in sorted(tensors.items())}
    return record.digest([plain, {k: v for k, v in about.items() if k != "digest"}])


def save_norm(path: Path, reference: Reference, payload: dict, latent: dict, about: dict) -> dict:
    """Write a norm as `path`, whole or not at all; return what it says about itself.

    `payload` is the VAE's checkpoint. Refuses (E-NORM) a norm that does not fit into a file.
    """
    norm, ruler = reference.norm, reference.ruler
    study, choice = norm.source.study, norm.choice
    if norm.candidate.name not in FITS:
        fix = "map with --maps.norm tbm, then export"
        raise BadInput("E-NORM", "export", "maps.norm", norm.candidate.name, " or ".join(FITS), fix)
    tensors = {
        "template": norm.source.template, "expected": norm.model.coefficients,
        "known": ruler.known, "bounds": np.stack([ruler.bounds[sex] for sex in SEXES]),
        **{f"latent.{key}": values for key, values in latent.items()},
        **{f"vae.{key}": values.numpy() for key, values in payload["ema"].items()},
    }  # fmt: skip
    models = {"normative": norm.normative, "ruler": ruler.normative}
    for name, model in models.items():
        parts = {key: getattr(model, key) for key in ("coefficients", "sd", "inverse")}
        tensors |= {f"{name}.{key}": values for key, values in parts.items()}
    for name, values in tensors.items():
        half = values.ndim and values.size > 10_000 and name not in SINGLE
        kind = bool if name == "vae.support" else np.float16 if half else np.float32
        tensors[name] = np.ascontiguousarray(values, kind)
    about = record.plain({
        **about, "preset": study.name, "voxel_mm": study.grid.voxel_mm, "shape": study.grid.shape,
        "brain": record.digest(norm.source.brain), "choice": choice, "people": reference.people,
        "ages": reference.ages, "widest": reference.widest, "freedom": norm.normative.freedom,
        "calibration": asdict(reference.calibration), "code": record.code_digest(*CODE),
        "demons_iterations": study.maps.demons_iterations,
        "vae": payload["identity"]["settings"],
    })  # fmt: skip
    about["digest"] = _digest(tensors, about)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    with record.writing(path.parent):
        aside.write_bytes(save(tensors, {"about": json.dumps(about, sort_keys=True)}))
        aside.replace(path)
    return about


def export(root: Path, study: Study, path: Path, raw: Path | None = None) -> Path:
    """Write the norm of finished `maps` as `path` (.safetensors), its card beside it.

    Only of the phantom or of open data: others' people are refused (E-LICENCE), as is a norm that
    does not fit (E-NORM); `maps` as in `anomaly.chosen`.
    """
    mark = record.read_mark(root)
    if not (mark["data"] == "phantom" or mark["people_may_be_shown"]):
        seen, fix = f"restricted ({mark['data']})", "use `dsnb release`, whose audit decides"
        raise BadInput("E-LICENCE", "export", "its data", seen, "the phantom or open data", fix)
    terms = gate.terms_of(root, raw)
    chosen = [row for row in anomaly.chosen(root, study) if row["norm"] == study.maps.norm]
    source = Source(root, study)
    reference = maps.calibrate(tuning.fit_chosen(source, chosen)[study.maps.norm])
    tables = anomaly.evaluate(root, study)["tables"]
    lifts = [row for row in tables.get("norms", ()) if row["norm"] == study.maps.norm]
    made = json.loads((root / "maps" / "product.json").read_text())["provenance"]
    about = {
        "data": mark["data"], "source": source_of(mark["data"], raw), "terms": terms,
        "scores": {"healthy_error": tables["flagged"][0], "lift": lifts[0] if lifts else None},
        "euploids": {split: len(source.rows("euploid", split)) for split in EUPLOID_SPLITS},
        "settings": record.digest(record.plain(asdict(study))),
        "keys": {name: record.require(root, name) for name in PARENTS},
        "made": {word: made[word] for word in ("commit", "dirty", "python", "packages")},
    }  # fmt: skip
    path = path.with_suffix(".safetensors")
    statistics = latents.load(root)[3]
    about = save_norm(path, reference, checkpoints.require(root / "runs/vae"), statistics, about)
    record.write_text(path.with_suffix(".md"), card(path, about))
    return path


def source_of(data: str, raw: Path | None) -> str:
    """Name what a norm was learnt from, by the dataset's own name and DOI."""
    if data == "phantom":
        return PHANTOM
    told = json.loads((raw / "dataset_description.json").read_text())
    named = (told.get("Name"), told.get("DatasetDOI"))
    return f"the dataset {data} ({', '.join(str(part) for part in named if part)})"


def card(path: Path, about: dict) -> str:
    """Return the card of a written norm: what is in it, from whom, and what it was worth."""
    error, lift = about["scores"]["healthy_error"], about["scores"]["lift"]
    text = CARD.format(
        name=path.stem, source=about["source"], preset=about["preset"], mm=about["voxel_mm"],
        shape=" x ".join(map(str, about["shape"])), size=path.stat().st_size / 1e6,
        norm=about["choice"]["norm"], fwhm=about["choice"]["fwhm_mm"], low=about["ages"][0],
        high=about["ages"][1], rate=about["calibration"]["rate"], vae=about["vae"]["architecture"],
        guarantee=about["calibration"]["guarantee"], channels=about["vae"]["channels"],
        people=", ".join(f"{count} {split}" for split, count in about["euploids"].items()),
        error=f"{error['flagged']} of {error['people']} test euploids" if error else "n/a",
        lift="{lift:.3f} [{lift_low:.3f}, {lift_high:.3f}]".format(**lift) if lift else "n/a",
        terms=about["terms"], commit=about["made"]["commit"][:12],
        settings=about["settings"], digest=about["digest"],
    )  # fmt: skip
    return text + NOTICE * (about["data"] == "phantom")


def check_grid(about: dict, grid: Grid) -> None:
    """Refuse (E-GRID) a norm of another grid or brain mask than the people's."""
    made = Grid(about["voxel_mm"], tuple(about["shape"]))
    if made != grid:
        seen, expected = (
            f"{grid.voxel_mm:g} mm, {grid.shape}",
            f"{made.voxel_mm:g} mm, {made.shape}",
        )
        fix = f"prepare the cohort with --preset {about['preset']}, in a data root of its own"
        raise BadInput("E-GRID", "norm", "the grid of the cohort", seen, expected, fix)
    if about["brain"] != (brain := record.digest(load_template(grid).brain)):
        fix = "install the tested nilearn (constraints.txt): its template differs"
        raise BadInput("E-GRID", "norm", "the brain mask", brain, about["brain"], fix)


def load(name: str) -> Shipped:
    """Load a norm by its name, or from a file that ends in .safetensors.

    Refuses an unknown name (E-UNKNOWN), a file that is no norm or is not as written (E-DAMAGED),
    and one of another grid than its preset's (E-GRID).
    """
    path = (
        Path(name).expanduser() if name.endswith(".safetensors") else FOLDER / f"{name}.safetensors"
    )
    if not path.is_file():
        near = difflib.get_close_matches(name, known_names(), 1, 0)
        expected = "a norm that comes with dsnb, like " + (near or ["none"])[0]
        fix = f"choose of {', '.join(known_names()) or 'none'}, or give a .safetensors file"
        raise BadInput("E-UNKNOWN", "command line", "norm", name, expected, fix)
    try:
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["about"])
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        sound = _digest(found, about) == about["digest"]
    except (SafetensorError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        fix = "fetch the file again"
        raise BadInput("E-DAMAGED", path.name, "this norm", "altered or no norm", "as written", fix)
    study = load_study(about["preset"])
    check_grid(about, study.grid)
    if about["code"] != record.code_digest(*CODE):
        record.say(f"norm {path.stem}: made by another version of dsnb, z may differ a little")
    return _build(path.stem, study, found, about)


def _build(name: str, study: Study, found: dict[str, np.ndarray], about: dict) -> Shipped:
    """Put a norm together from its arrays."""
    choice, weights = about["choice"], {
        key[4:]: torch.from_numpy(values.astype(np.float32))
        for key, values in found.items() if key.startswith("vae.")
    }  # fmt: skip
    told = replace(study.maps, norm=choice["norm"], q=about["calibration"]["rate"],
                   demons_iterations=about["demons_iterations"])  # fmt: skip
    source = Borrowed(replace(study, maps=told, vae=vae_settings(about["vae"])), found["template"])
    both = (
        Normative(*(found[f"{model}.{key}"].astype(np.float32)
                    for key in ("coefficients", "sd", "inverse")), about["freedom"])
        for model in ("normative", "ruler")
    )  # fmt: skip
    normative, of_regions = both
    expected = found["expected"].astype(np.float32)
    model = ComponentNorm(expected, np.empty((0, expected.shape[1]), np.float32))
    norm = FittedNorm(BY_NAME[choice["norm"]], model, choice, source, normative)
    ruler = Ruler(norm, of_regions, found["known"], dict(zip(SEXES, found["bounds"])))
    calibration = Calibration(**about["calibration"])
    known = about["widest"], about["people"]
    reference = Reference(norm, calibration, ruler, tuple(about["ages"]), *known)
    model = vae.restore({"identity": {"settings": about["vae"]}, "ema": weights})
    latent = {key: found[f"latent.{key}"] for key in ("mean", "std")}
    return Shipped(name, reference, model, latent, about)


def score(norm: Shipped, volumes: np.ndarray, table: pd.DataFrame) -> tuple[np.ndarray, ...]:
    """Return z, p and q, each (N, X, Y, Z), of prepared volumes (N, X, Y, Z) of people.

    `table` has their age in years and sex (F, M). Outside of the brain z is 0, p and q are 1.
    """
    reference, source = norm.reference, norm.reference.norm.source
    found = rivals.register_volumes(volumes, source.template, source.study)
    source.take(table.reset_index(drop=True), volumes, found)
    z = reference.norm.z(source.people(np.arange(len(table))))
    parts = (z, 0), (reference.calibration.p(z), 1), (reference.calibration.q(z), 1)
    return tuple(np.stack([source.fill(v, outside) for v in part]) for part, outside in parts)
