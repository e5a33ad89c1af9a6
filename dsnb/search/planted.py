"""Do the maps hold on real scans? The disease's field planted on people no norm has seen.

Five folds by person: each is a study of its own, from the BIDS folder to its maps, whose people are
split between norm, scale, calibration and test. One row a fold in the ledger.
"""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from dsnb import anomaly, bids, cohort, dataset, latents, record, vae, volumes
from dsnb.anomaly import metrics, tuning, undo
from dsnb.anomaly.people import CANDIDATES, PRIMARY, Source
from dsnb.config import Maps, Study

LEDGER = "05_planted"
CODE = ("space", "rivals", "norms", "latents", "anomaly", "phantom", "volumes", "vae/networks",
        "vae/task", "search/planted")  # fmt: skip
FOLDS = 5
LEARNT = {"fit": 0.55, "validation": 0.05, "scale": 0.2}  # of a fold's others; the rest calibrate
ELSEWHERE = "undo_phantom"  # the network of the phantom study


def split(names: list[str], fold: int) -> dict[str, str]:
    """Return who is what in a fold: a fifth is tested, each person once over the folds."""
    known, unseen = list(KFold(FOLDS, shuffle=True, random_state=0).split(names))[fold]
    known = np.random.default_rng(fold).permutation(known)
    ends = np.round(np.cumsum(list(LEARNT.values())) * len(known)).astype(int)
    parts = dict(zip((*LEARNT, "calibration"), np.split(known, ends))) | {"test": unseen}
    return {names[row]: part for part, rows in parts.items() for row in rows}


def make_raw(raw: Path, into: Path, fold: int) -> None:
    """Copy a BIDS folder and state a fold's splits in its participants.tsv."""
    if into.is_dir():
        shutil.rmtree(into)
    shutil.copytree(raw, into)
    table = bids.read_table(into / "participants.tsv")
    names = sorted(set(bids.find_t1w(raw)[0]["participant_id"]) & set(table["participant_id"]))
    table["split"] = table["participant_id"].map(split(names, fold))
    bids.write_table(into / "participants.tsv", table.dropna(subset="split"))


def run_fold(root: Path, study: Study, raw: Path) -> None:
    """Walk from a BIDS folder to its maps."""
    cohort.gather(root, study, raw)
    volumes.prepare(root, study, raw)
    vae.train(root, study)
    latents.encode(root, study)
    anomaly.map_departures(root, study)


def transfer(root: Path, study: Study, phantom: Path) -> dict[str, list[float]]:
    """Return the lifts (N,) of a fold's planted test people by the phantom's network.

    Age, sex and spread are the fold's own; nothing else of the network has seen a real scan.
    """
    source, net = Source(root, study), undo.load(phantom, study)
    for name in ("coefficients", "sd"):
        getattr(net, name).copy_(getattr(source.undo_net, name))
    source.undo_net = net
    chosen = anomaly.evaluate(root, study)["tables"]["chosen"]
    norm = tuning.fit_chosen(source, [row for row in chosen if row["norm"] == "undo"])["undo"]
    rows = source.rows("DS", "test")
    people, truth = source.people(rows, moved=True), np.abs(source.truth_of(rows))
    maps = np.abs(norm.in_own_grid(norm.z(people), people.points))
    return {"lift": metrics.average_precision(maps, truth > study.maps.truth_change)[2].tolist()}


def map_folds(root: Path, study: Study, raw: Path | None, phantom: str) -> None:
    """Fill the ledger with every fold of a BIDS folder; what is there stays.

    `phantom` is the data root of the phantom study, whose network is tried beside the fold's own.
    """
    about = record.read_mark(root)
    for fold in range(FOLDS):
        task = {"preset": study.name, "data": about["data"], "fold": fold, "seed": 1}
        key = record.row_key(task | {"phantom": bool(phantom)}, CODE)
        if raw is None or record.find_row(LEDGER, key):
            continue
        folder = root / "runs" / "planted" / str(fold)
        own = record.open_root(folder, study.name, about["data"], about["people_may_be_shown"])
        if not (own / "maps" / "product.json").is_file():
            make_raw(raw, own / "bids", fold)
        run_fold(own, study, own / "bids")
        each = anomaly.evaluate(own, study)["tables"]["each"]
        if phantom:
            each[ELSEWHERE] = transfer(own, study, Path(phantom))
        people = len(dataset.select(dataset.load_table(own), "DS", "test"))
        record.add_row(LEDGER, key, {"people": people, "each": each})
        record.say(f"fold {fold} of {about['data']}: {people} people planted")


def summarise(rows: pd.DataFrame, settings: Maps) -> list[dict]:
    """Return lift and gain of every norm over all folds' people, with intervals over people.

    The primary norm's lift is also divided by that of the best plain rival, and the phantom's
    network's by that of the fold's own, both paired by person.
    """
    each, table = {}, []
    for row in rows.to_dict("records"):
        for name, found in row["each"].items():
            for value, values in found.items():
                each.setdefault(name, {}).setdefault(value, []).extend(values)
    lifts = {name: np.array(found["lift"]) for name, found in each.items()}
    plain = [c.name for c in CANDIDATES if not c.deep and c.name in lifts]
    against = {PRIMARY: max(plain, key=lambda name: lifts[name].mean()), ELSEWHERE: PRIMARY}
    for name, found in each.items():
        row = {"norm": name, "people": len(lifts[name])}
        for value, values in found.items():
            row |= metrics.mean(value, np.array(values), settings)
        if other := against.get(name):
            row |= {
                "against": other,
                "ratio": lifts[name].mean() / lifts[other].mean(),
                "interval": metrics.ratio_interval(lifts[name], lifts[other], settings),
            }
        table.append(row)
    return table
