"""Do latents add to staging once more people are asked? On further people with DS; in the ledger.

They are drawn by another seed into a data root beside the study's, whose networks never saw them,
and no choice of page 06 was made on them.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dsnb import cohort, dataset, latents, phantom, record, rivals, vae, volumes
from dsnb.anomaly import undo
from dsnb.checks import BadInput
from dsnb.config import Study, replace
from dsnb.space import STAGES, covariates, load_template
from dsnb.strata import crossval
from dsnb.strata.crossval import Features
from dsnb.strata.people import dot_products, relative, standardise

LEDGER = "06_stages"
CODE = (
    "space",
    "rivals",
    "latents",
    "phantom",
    "cohort",
    "volumes",
    "anomaly/undo",
    "vae/networks",
    "vae/task",
    "strata/crossval",
    "strata/people",
    "search/stages",
)
SEED = 7  # of the further people
PEOPLE = 400  # with DS, of all stages
COUNTS = (100, 200, 400)  # of them who are asked
DEALS = 3  # of the folds
KNOWN = "age, sex, volumes"


def draw_people(root: Path, study: Study) -> Path:
    """Return the data root of further people, made where it is missing: `root`-more."""
    more = root.with_name(f"{root.name}-more")
    record.open_root(str(more), study.name, None, True)
    drawn = replace(study.cohort, euploid=20, ds=PEOPLE, sham=0, repeat=0, native=0, seed=SEED)
    drawn = replace(study, cohort=drawn)
    phantom.make_cohort(more, drawn)
    cohort.gather(more, drawn)
    volumes.prepare(more, drawn)
    return more


def tell(root: Path, more: Path, study: Study) -> tuple[pd.DataFrame, tuple, dict[str, np.ndarray]]:
    """Return the staged people's table, columns that are known, and features (N, ...) by name."""
    table = dataset.load_table(more)
    rows = dataset.select(table, "DS")
    rows = rows[table["stage"].iloc[rows].isin(STAGES)]
    table = table.iloc[rows].assign(seen_by="n/a").reset_index(drop=True)
    scans = np.asarray(dataset.load_volumes(more)[rows], np.float32)
    z = standardise(vae.encode(vae.load(root), scans)[0], latents.load(root)[3])
    grown = rivals.register_volumes(scans, rivals.load_template(root), study)
    known = covariates(table), relative(rivals.region_volumes(grown, study.grid))
    inside = grown[:, load_template(study.grid).brain]
    alike = np.tile(covariates(table).mean(0), (len(table), 1))  # not to tell age and sex
    seen = undo.find(undo.load(root, study), inside, alike)
    return table, known, {"latents": z, "deformation": inside, "undone": seen}


def ask(table: pd.DataFrame, known: tuple, sets: dict[str, np.ndarray], settings) -> list[dict]:
    """Return a row a set of features beside what is known: ordinal AUROC and the paired gain."""
    target = table["stage"].map(list(STAGES).index).to_numpy(int)
    families, rows = table["family"].to_numpy(str), []
    asked = {KNOWN: Features(columns=known)}
    asked |= {f"{KNOWN}, {name}": Features(dot_products(of), known) for name, of in sets.items()}
    found = {
        name: crossval.predict(table, target, settings, features, repeats=DEALS)
        for name, features in asked.items()
    }
    for name, answer in found.items():
        row = crossval.score(name, target, answer, families, settings, STAGES)
        if name != KNOWN:
            gain = crossval.gain(target, answer, found[KNOWN], families, settings)
            row["gain"], (row["gain_low"], row["gain_high"]) = gain
        rows.append(row)
    return rows


def stage_more(root: Path, study: Study) -> None:
    """Fill the ledger with what features add to staging, by number of people asked.

    Refuses (E-ROOT) a study of real scans: its people cannot be drawn.
    """
    cohort_of = dataset.identify(root)
    if cohort_of["data"] != "phantom":
        fix = "give the data root of a phantom study"
        raise BadInput("E-ROOT", root.name, "its data", cohort_of["data"], "the phantom", fix)
    torch.set_num_threads(1)  # the same arithmetic on any machine
    settings = {name: asdict(getattr(study, name)) for name in ("strata", "vae", "undo")}
    told = None
    for count in COUNTS:
        task = {**cohort_of, "part": "further people", "change": count, "seed": SEED}
        key = record.row_key(task | {"settings": settings}, CODE)
        if record.find_row(LEDGER, key):
            continue
        told = told or tell(root, draw_people(root, study), study)
        table, known, sets = told
        some = slice(0, count)
        rows = ask(table[some], tuple(block[some] for block in known),
                   {name: of[some] for name, of in sets.items()}, study.strata)  # fmt: skip
        record.add_row(LEDGER, key, {"features": rows})
        gains = ", ".join(f"{row['features']} {row['gain']:+.3f}" for row in rows[1:])
        record.say(f"{len(table[some])} further people: {gains}")
