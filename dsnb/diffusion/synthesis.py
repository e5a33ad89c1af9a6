"""The synthetic cohort: people bootstrapped from the real ones, drawn, decoded and written."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from dsnb import bids, config, latents, record, space, vae
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.diffusion.components import generator_rows
from dsnb.diffusion.flow import Flow, condition
from dsnb.diffusion.guidance import SAMPLING, settle
from dsnb.diffusion.samplers import draw
from dsnb.diffusion.task import load

JITTER_YEARS = 2.0  # SD of the age added to a bootstrapped person's


class Asked(NamedTuple):
    """Who is to be drawn into a folder: how many a group, of which group, age range and seed."""

    count: int
    group: str = ""  # both where empty
    ages: tuple[float, float] | None = None  # of the training people where None
    seed: int = 1


def bootstrap_people(table: pd.DataFrame, count: int, ages: list[float], seed: int) -> pd.DataFrame:
    """Draw `count` people a group whose stage, age (years) and sex are those of real ones.

    Each row of `table` is drawn with replacement within its group; ages get a jitter and stay in
    the range asked for. A group without people is left out.
    """
    rng, groups = np.random.default_rng(seed), []
    for group in space.GROUPS:
        real = table[table["group"] == group]
        if len(real):
            drawn = real.iloc[rng.integers(len(real), size=count)]
            years = drawn["age"].to_numpy(float) + rng.normal(0, JITTER_YEARS, count)
            groups.append(drawn.assign(age=np.clip(years, *ages).round(1)))
    people = pd.concat(groups, ignore_index=True)[["group", "stage", "age", "sex"]]
    people.insert(0, "participant_id", [f"sub-syn{i + 1:04d}" for i in range(len(people))])
    return people


def sample(root: Path, study: Study) -> None:
    """Draw the synthetic cohort as product `synthetic`: BIDS derivatives, a table and volumes.npy.

    volumes.npy is float16 (N, X, Y, Z), row i the person of row i; a killed run goes on with the
    batches that lack a scan.
    """
    settings = {name: getattr(study.diffusion, name) for name in (*SAMPLING, "synthetic")}
    settings["seed"] = seed = study.diffusion.training.seed
    parents = ("runs/diffusion", "runs/vae", "latents")
    product = record.begin(root, "synthetic", "sample", settings, parents, ("diffusion", "vae"))
    if product.done:
        return
    flow, decoder = load(root)[0], vae.load(root)
    table = latents.load(root)[0]
    people = bootstrap_people(table.iloc[generator_rows(table)[0]], study.diffusion.synthetic,
                              flow.age_range.tolist(), seed)  # fmt: skip
    settings = settle(root, study, seed)
    path, shape = product.folder / "volumes.npy", (len(people), *study.grid.shape)
    mode = "r+" if path.is_file() else "w+"
    volumes = np.lib.format.open_memmap(path, mode, np.float16, shape)
    for part in vae.batches(len(people)):
        names = people["participant_id"][part]
        if not all(_scan(product.folder, name).is_file() for name in names):
            volumes[part] = decode(flow, decoder, people, np.arange(len(people))[part], settings)
            volumes.flush()
            for row in range(len(people))[part]:
                _write_scan(product.folder, people.iloc[row], volumes[row], flow.affine.numpy())
        record.progress("sample", min(part.stop, len(people)), len(people))
    bids.write_table(product.folder / "participants.tsv", people)
    bids.describe(product.folder, "dsnb synthetic cohort, not audited", "runs/diffusion")
    product.finish()


def parse_ages(text: str) -> tuple[float, float] | None:
    """Return the ages of `40:60` in years; refuse anything else (E-AGE)."""
    try:
        low, high = map(float, text.split(":")) if text else (0.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low <= high <= 120:
        wanted = "two ages in years, the younger first"
        raise BadInput("E-AGE", "command line", "--age", text, wanted, "say for example 40:60")
    return (low, high) if text else None


def sample_more(root: Path, study: Study, out: Path, asked: Asked, shard: str = "1/1") -> None:
    """Draw people asked for into the folder `out`, not audited; `shard` k/n draws every n-th.

    A person is the same in any share or batch; what is there is kept, so a killed run goes on.
    Refuses ages the model never saw (E-AGE), a group without training people (E-GROUP), and a
    folder with other people (E-EXISTS).
    """
    part, parts = config.parse_shard(shard, "sample")
    flow, decoder, table = load(root)[0], vae.load(root), latents.load(root)[0]
    table = table.iloc[generator_rows(table)[0]]
    known = flow.age_range.tolist()
    low, high = asked.ages or known
    if asked.ages and (low < known[0] or high > known[1]):
        wanted, fix = f"{known[0]:.0f} to {known[1]:.0f} years", "ask for ages it has learnt"
        raise BadInput("E-AGE", "command line", "--age", f"{low:g}:{high:g}", wanted, fix)
    table = table[table["group"].eq(asked.group) if asked.group else table["group"].notna()]
    if table.empty:
        fix = "train it on a cohort that has them"
        raise BadInput("E-GROUP", "command line", "--group", asked.group, "a group it knows", fix)
    within = table[table["age"].between(low, high)] if asked.ages else table
    within = within if len(within) else table
    people = bootstrap_people(within, asked.count, [low, high], asked.seed)
    if asked.ages:
        years = np.random.default_rng([asked.seed, 1]).uniform(low, high, len(people))
        people["age"] = years.round(1)
    settings = settle(root, study, asked.seed)
    if (out / "participants.tsv").is_file():
        there = bids.typed(bids.read_table(out / "participants.tsv"))
        if any(there[name].tolist() != people[name].tolist() for name in ("participant_id", "age")):
            fix = "name a new folder"
            raise BadInput("E-EXISTS", out.name, "the folder", "other people", "these", fix)
    bids.write_table(out / "participants.tsv", people)
    bids.describe(out, "dsnb synthetic brains, not audited", "runs/diffusion")
    rows = np.arange(len(people))[part - 1 :: parts]
    for some in vae.batches(len(rows)):
        left = [row for row in rows[some]
                if not _scan(out, people["participant_id"][row]).is_file()]  # fmt: skip
        for row, volume in zip(left, decode(flow, decoder, people, left, settings)):
            _write_scan(out, people.iloc[row], volume, flow.affine.numpy())
        record.progress("sample", min(some.stop, len(rows)), len(rows))


def decode(
    flow: Flow, decoder: vae.NormativeVae, people: pd.DataFrame, rows, settings: dict
) -> np.ndarray:
    """Return the volumes (B, X, Y, Z), intensity 0 to 1.5, of some rows of requested people."""
    return flow.finish(decode_means(flow, decoder, people, rows, settings))


def decode_means(flow, decoder, people, rows, settings) -> np.ndarray:
    """Return what the decoder draws of some rows of people, (B, X, Y, Z): not yet sharpened."""
    how, rows = {name: settings[name] for name in ("seed", *SAMPLING)}, np.asarray(rows, int)
    if not len(rows):
        return np.zeros((0, *decoder.mean_volume.shape[2:]), np.float32)
    z = draw(flow, condition(people.iloc[rows]), samples=rows, **how)
    return vae.decode(decoder, z.numpy())


def _scan(folder: Path, name: str) -> Path:
    return folder / name / "anat" / f"{name}_space-{space.SPACE}_desc-synthetic_T1w.nii.gz"


def _write_scan(folder: Path, person: pd.Series, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write one synthetic scan with what was asked for in its sidecar."""
    asked = {name: person[name] for name in ("group", "stage", "age", "sex")}
    sidecar = {"SpatialReference": space.SPACE, "SkullStripped": True, "Synthetic": True,
               "Requested": asked}  # fmt: skip
    bids.save_volume(_scan(folder, person["participant_id"]), volume, affine, sidecar, step=1e-4)
