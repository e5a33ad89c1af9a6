"""Do the maps hold on real scans? The disease's field planted on people no norm has seen.

Five folds by person: each is a study of its own, from the BIDS folder to its maps, whose people are
split between norm, scale, calibration and test. One row a fold in the ledger.
"""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold

from dsnb import anomaly, bids, cohort, latents, record, vae, volumes
from dsnb.anomaly import metrics, tuning, undo
from dsnb.anomaly.people import PRIMARY, Source
from dsnb.checks import BadInput
from dsnb.config import Maps, Study

LEDGER = "05_planted"
CODE = ("space", "rivals", "norms", "latents", "anomaly", "phantom", "cohort", "volumes",
        "vae/networks", "vae/task", "training/state", "search/planted")  # fmt: skip
FOLDS = 5
LEARNT = {"fit": 0.55, "validation": 0.05, "scale": 0.2}  # of a fold's others; the rest calibrate
ELSEWHERE = "undo_phantom"  # the network of the phantom study


def split(people: pd.DataFrame, fold: int) -> dict[str, str]:
    """Return who is what in a fold: a fifth is tested, each person once, families whole."""
    folds = GroupKFold(FOLDS, shuffle=True, random_state=0)
    known, unseen = list(folds.split(people, groups=people["family"]))[fold]
    parts = {"test": people["family"].iloc[unseen].unique()}
    known = np.random.default_rng(fold).permutation(people["family"].iloc[known].unique())
    ends = np.round(np.cumsum(list(LEARNT.values())) * len(known)).astype(int)
    parts |= dict(zip((*LEARNT, "calibration"), np.split(known, ends)))
    side = {family: part for part, families in parts.items() for family in families}
    return dict(zip(people["participant_id"], people["family"].map(side)))


def make_raw(raw: Path, into: Path, people: pd.DataFrame, fold: int) -> None:
    """Copy a BIDS folder and state a fold's splits in its participants.tsv."""
    if into.is_dir():
        shutil.rmtree(into)
    shutil.copytree(raw, into)
    table = bids.read_table(into / "participants.tsv")
    table["split"] = table["participant_id"].map(split(people, fold))
    bids.write_table(into / "participants.tsv", table.dropna(subset="split"))


def run_fold(root: Path, study: Study, raw: Path) -> None:
    """Walk from a BIDS folder to its maps."""
    cohort.gather(root, study, raw)
    volumes.prepare(root, study, raw)
    vae.train(root, study)
    latents.encode(root, study)
    anomaly.map_departures(root, study)


def transfer(root: Path, study: Study, phantom: Path) -> dict[str, np.ndarray]:
    """Return the lifts (N,) of a fold's planted test people by the phantom's network.

    Template, effects of age and sex, spread, smoothing and scale are the fold's own.
    """
    source, net = Source(root, study), undo.load(phantom, study)
    for name in ("coefficients", "sd"):
        getattr(net, name).copy_(getattr(source.undo_net, name))
    source.undo_net = net
    chosen = [row for row in anomaly.chosen(root, study) if row["norm"] == PRIMARY]
    norm = tuning.fit_chosen(source, chosen)[PRIMARY]
    rows = source.rows("DS", "test")
    people, truth = source.people(rows, moved=True), np.abs(source.truth_of(rows))
    maps = np.abs(norm.in_own_grid(norm.z(people), people.points))
    return {"lift": metrics.average_precision(maps, truth > study.maps.truth_change)[2]}


def map_folds(root: Path, study: Study, raw: Path | None, phantom: str) -> None:
    """Fill the ledger with every fold of a BIDS folder; what is there stays.

    `phantom` is the data root of the phantom study, whose network is tried beside the fold's own.
    Refuses no folder (E-RAW), people with DS (E-GROUP), and folds too small for a norm (E-FEW).
    """
    if raw is None:
        fix = "give a BIDS folder of people without DS"
        raise BadInput("E-RAW", "command line", "--raw", "", "a folder", fix)
    net = record.require(Path(phantom), undo.RUN) if phantom else None
    people, about = cohort.read_folder(raw).people, record.read_mark(root)
    people = people[people["kind"] == "recorded"]  # a later session goes with its person
    if (people["group"] == "DS").any():
        seen, fix = int((people["group"] == "DS").sum()), "leave them out: the disease is planted"
        raise BadInput("E-GROUP", "participants.tsv", "people with DS", seen, "none", fix)
    made_of = {
        "scans": record.digest(people[["participant_id", "family", "sha"]].to_numpy().tolist()),
        "maps": asdict(study.maps), "undo": asdict(study.undo), "vae": asdict(study.vae),
        "phantom": net,
    }  # fmt: skip
    for fold in range(FOLDS):
        task = {"preset": study.name, "data": about["data"], "fold": fold, "seed": 1}
        key = record.row_key(task | {"of": made_of}, CODE)
        if record.find_row(LEDGER, key):
            continue
        folder = root / "runs" / "planted" / str(fold)
        own = record.open_root(folder, study.name, about["data"], about["people_may_be_shown"])
        make_raw(raw, own / "bids", people, fold)
        run_fold(own, study, own / "bids")
        each = anomaly.evaluate(own, study)["tables"].get("each")
        if each is None:
            fix = "give a cohort with more people"
            raise BadInput("E-FEW", f"fold {fold}", "its people", len(people), "more", fix)
        if phantom:
            each[ELSEWHERE] = transfer(own, study, Path(phantom))
        order = np.random.default_rng(fold).permutation(len(each[PRIMARY]["lift"]))  # nobody's row
        each = {name: {value: np.array(values)[order] for value, values in found.items()}
                for name, found in each.items()}  # fmt: skip
        record.add_row(LEDGER, key, {"people": len(order), "each": each})
        record.say(f"fold {fold} of {about['data']}: {len(order)} people planted")


def summarise(rows: pd.DataFrame, settings: Maps) -> list[dict]:
    """Return lift and gain of every norm over all folds' people, with intervals over people.

    The lift of the phantom's network is also divided by that of the fold's own, paired by person.
    """
    folds, table = rows["each"].tolist(), []
    names = list(dict.fromkeys(name for each in folds for name in each))

    def gather(name: str, value: str, beside: str) -> np.ndarray:
        both = [each for each in folds if value in each.get(name, ()) and beside in each]
        return np.concatenate([each[name][value] for each in both] or [[]])

    for name in names:
        row = {"norm": name, "people": len(gather(name, "lift", name))}
        for value in ("lift", "gain"):
            if len(values := gather(name, value, name)):
                row |= metrics.mean(value, values, settings)
        if name == ELSEWHERE:
            pair = gather(name, "lift", PRIMARY), gather(PRIMARY, "lift", name)
            row |= {"against": PRIMARY, "ratio": pair[0].mean() / pair[1].mean(),
                    "interval": metrics.ratio_interval(*pair, settings)}  # fmt: skip
        table.append(row)
    return table
