"""Do the pages' 95 % intervals hold the truth? A hundred phantom cohorts, in the ledger.

Cohorts are drawn as the phantom draws them, and not rendered (`unrendered`); what follows is the
pages' own code (`claims`). People of page 05 are redrawn from the study's own.
"""

import time
from dataclasses import asdict
from functools import cache
from pathlib import Path

import torch

from dsnb import anomaly, record
from dsnb.checks import BadInput
from dsnb.config import Study, replace
from dsnb.search import claims, unrendered
from dsnb.search.unrendered import Seen

LEDGER = "06_coverage"
CODE = ("space", "phantom", "latents", "strata/crossval", "strata/people", "strata/permutation",
        "strata/axes", "fidelity", "privacy/attacks", "anomaly/metrics", "search/unrendered",
        "search/claims", "search/coverage")  # fmt: skip
COHORTS = 100
POPULATION = 4000  # people a group behind a truth, some twenty-five times a cohort's
PARTS = {"directions": claims.ask_directions, "fidelity": claims.ask_fidelity,
         "strata": claims.ask_strata}  # fmt: skip


@cache
def populations(study: Study) -> tuple[Seen, Seen]:
    """Return very many people of the phantom, and of the kind of the synthetic cohort."""
    many = replace(study.cohort, euploid=POPULATION, ds=POPULATION, seed=10**6)
    made = replace(many, seed=many.seed + 1)
    return unrendered.draw(many, study.grid), claims.synthesise(made, study.grid)


def _draw(root: Path, study: Study, part: str, seed: int) -> claims.Found:
    """Return the intervals of a part in one cohort."""
    if part == "maps":
        each = anomaly.evaluate(root, study)["tables"]["each"]
        return claims.ask_maps(each, study.maps, seed)
    some = unrendered.draw(replace(study.cohort, seed=1000 + seed), study.grid)
    return PARTS[part](some, claims.split(some, study.cohort), populations(study), study, seed)


def draw_cohorts(root: Path, study: Study) -> None:
    """Fill the ledger with intervals beside their truth, a row a cohort and part.

    Refuses (E-ROOT) a study of real scans, whose truths are not known.
    """
    mark = record.read_mark(root)
    if mark["data"] != "phantom":
        fix = "give the data root of a phantom study"
        raise BadInput("E-ROOT", root.name, "its data", mark["data"], "the phantom", fix)
    torch.set_num_threads(1)  # the same arithmetic on any machine
    names = ("grid", "cohort", "maps", "strata", "release")
    settings = record.digest(record.plain({name: asdict(getattr(study, name)) for name in names}))
    for part in ("maps", *PARTS):
        of = record.file_digest(root, "maps", "metrics.json") if part == "maps" else settings
        for seed in range(COHORTS):
            task = {"preset": mark["preset"], "data": mark["data"], "part": part, "of": of}
            key = record.row_key(task | {"seed": seed}, CODE)
            if not record.find_row(LEDGER, key):
                began, found = time.process_time(), _draw(root, study, part, seed)
                spent = {"cpu_seconds": time.process_time() - began}
                record.add_row(LEDGER, key, {"intervals": found} | spent)
            record.progress(f"coverage, {part}", seed + 1, COHORTS)
