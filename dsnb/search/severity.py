"""How strong must a change be to be seen? Every norm of the maps over severity, in the ledger.

The disease's local field, or a random one of equal size and another construction, is planted on
unseen euploids; each is then compared with the very same person left alone.
"""

import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from dsnb import anomaly, dataset, phantom, record
from dsnb.anomaly import metrics, tuning
from dsnb.anomaly.people import Source
from dsnb.config import Study

LEDGER = "05_severity"
CODE = ("space", "rivals", "norms", "latents", "anomaly", "phantom", "vae/networks",
        "search/severity")  # fmt: skip
FIELDS = {"DS": phantom.disease_displacement, "random": phantom.sham_displacement}
SEVERITIES = (0.25, 0.5, 1.0, 1.5, 2.0)
PEOPLE = 20  # unseen euploids, each planted at every severity


def measure(fitted: dict, source: Source, rows: np.ndarray, field: str, severity: float) -> list:
    """Return lift and gain of every norm on people with a planted field, means with intervals.

    Gain is the lift of the changed person's map above that of the same person unchanged, laid over
    the same truth: what the change, and nothing else, adds.
    """

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        return FIELDS[field](source.grid, severity, number + 1)

    people, truth = source.planted(rows, draw)
    before, settings, table = source.people(rows), source.study.maps, []
    changed = truth > settings.truth_change
    for name, norm in fitted.items():
        found, without = (
            metrics.average_precision(
                np.abs(norm.in_own_grid(norm.z(who), people.points)), changed
            )[2]
            for who in (people, before)
        )
        row = {"norm": name, "people": len(found)}
        for column, values in (("lift", found), ("gain", found - without)):
            row |= metrics.mean(column, values, settings)
        table.append(row)
    return table


def trace(root: Path, study: Study) -> None:
    """Fill the ledger with every field and severity, at the settings that `maps` chose."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    chosen, source = anomaly.chosen(root, study), Source(root, study)
    rows = source.rows("euploid", "test")[:PEOPLE]
    settings = {"chosen": chosen, "undo": asdict(study.undo), "vae": asdict(study.vae)}
    fitted = None
    for field in FIELDS:
        for severity in SEVERITIES:
            task = {**dataset.identify(root), "part": field, "change": severity, "seed": 1}
            key = record.row_key(task | {"settings": settings}, CODE)
            if record.find_row(LEDGER, key):
                continue
            fitted, began = fitted or tuning.fit_chosen(source, chosen), time.process_time()
            norms = measure(fitted, source, rows, field, severity)
            seconds = time.process_time() - began  # registrations run in other processes
            record.add_row(LEDGER, key, {"norms": norms, "cpu_seconds": seconds})
            record.say(f"severity {severity:g} of {field}: {len(rows)} people")
