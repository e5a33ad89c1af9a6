"""People beside the study's, drawn by another seed; its models never see their scans.

`public` euploids stand for an open cohort: a generator may take from them what it must know of
brains and not of its own people. With the `reference` people they are an attacker's own. `unseen`
people judge copies and attacks; a `twin` is for nothing.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from dsnb import cohort, dataset, phantom, record, vae, volumes
from dsnb.config import Study, replace

SEED = 11  # of the further people
FOLDER = "further"  # a data root inside the study's
LATENTS = "further/latents"


def draw_people(root: Path, study: Study) -> Path:
    """Return the data root of further phantom people, made where it is missing.

    They are phantoms in a study of real scans, too, where they stand for an open cohort.
    """
    more, asked = root / FOLDER, study.further
    record.open_root(str(more), study.name, "phantom", True)
    people = replace(
        study.cohort, euploid=asked.public + asked.euploid, ds=asked.reference + asked.ds,
        sham=0, repeat=0, native=0, seed=SEED,
    )  # fmt: skip
    drawn = replace(study, cohort=people)
    phantom.make_cohort(more, drawn)
    cohort.gather(more, drawn)
    volumes.prepare(more, drawn)
    return more


def encode(root: Path, study: Study) -> None:
    """Make the product `further/latents`: posterior means (N, C, d, h, w) of further people."""
    more = draw_people(root, study)
    people = {"prepared": record.require(more, "prepared")}  # of another data root: no parent
    code = ("further", *vae.CODE, "dataset")
    product = record.begin(root, LATENTS, "encode further people", people, ("runs/vae",), code)
    if product.done:
        return
    model, scans = vae.load(root), dataset.load_volumes(more)
    parts = [vae.encode(model, scans[part])[0] for part in vae.batches(len(scans), 32)]
    np.save(product.folder / "mean.npy", np.concatenate(parts))
    product.finish()


def load(root: Path, study: Study) -> tuple[pd.DataFrame, np.memmap, np.memmap]:
    """Return table, volumes (N, X, Y, Z) and latents (N, C, d, h, w); the table's `role` is above.

    Names begin with sub-further, so that none is a person's of the study.
    """
    record.require(root, LATENTS)
    table, asked = dataset.load_table(root / FOLDER), study.further
    role = np.where(table["kind"].isin(dataset.OWN_PEOPLE), "unseen", "twin").astype(object)
    role[dataset.select(table, "euploid")[: asked.public]] = "public"
    role[dataset.select(table, "DS")[: asked.reference]] = "reference"
    names = table["participant_id"].str.replace("sub-", "sub-further", regex=False)
    z = np.load(root / LATENTS / "mean.npy", mmap_mode="r", allow_pickle=False)
    scans = dataset.load_volumes(root / FOLDER)
    return table.assign(role=role, participant_id=names, family=names), scans, z
