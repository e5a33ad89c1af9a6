"""Which latent, and which reader of it? Other grids, `morph`, residual networks; in the ledger.

Each VAE is trained as long as the others, and everything is asked on the same people and folds.
"""

from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from dsnb import dataset, record, rivals, vae
from dsnb.anomaly.people import Source
from dsnb.checks import BadInput
from dsnb.config import Study, Vae, replace
from dsnb.search import hard
from dsnb.space import GROUPS, STAGES, covariates, load_template
from dsnb.strata import crossval, nets
from dsnb.strata.crossval import Features
from dsnb.strata.people import People, dot_products, relative, standardise

LEDGER = "06_latents"
CODE = (*vae.CODE, "latents", "strata/crossval", "strata/people", "strata/nets", "search/hard",
        "search/latent_kinds")  # fmt: skip
RUNS = "runs/kinds"
VOLUMES = 2000  # seen by each VAE
KINDS = {  # changes of the study's VAE
    "quarter": {},
    "eighth": {"latent": "eighth", "channels": 64},
    "pooled": {"latent": "pooled", "channels": 64},
    "flat": {"latent": "flat", "channels": 256},
    "morph": {"architecture": "morph"},
}
READERS = {  # what a network reads: the latents of the study's own VAE, or scans
    "network on latents": ("latents", nets.Net()),
    "network on latents, focal": ("latents", nets.Net(loss="focal")),
    "network on scans": ("scans", nets.Net(widths=(8, 16, 32, 64), stride=2)),
}
SEEDS = (1, 2, 3)
HARD_BACC = 0.80  # of estimated volumes, where the disease is called faint


def faintest(table: pd.DataFrame) -> float:
    """Return the severity at which estimated volumes come closest to 0.80 balanced accuracy.

    `table` has a row a severity and set of features, on the people of the choosing seed.
    """
    plain = table[table["features"] == "estimated volumes"]
    return float(plain.loc[(plain["bacc"] - HARD_BACC).abs().idxmin(), "severity"])


def _faint_severity(root: Path) -> float:
    """Return the severity that the hard arm's ledger chooses; refuses (E-LEDGER) without it."""
    rows = record.ledger_rows(hard.LEDGER, **dataset.identify(root), part="choose")
    if not rows:
        fix = "run `search hard` first"
        raise BadInput("E-LEDGER", hard.LEDGER, "part", None, "rows to choose by", fix)
    named = [{"severity": row["change"]} | one for row in rows for one in row["features"]]
    return faintest(pd.DataFrame(named))


@dataclass(frozen=True)
class Question:
    """Who is asked what: table, target (N,), scans (N, X, Y, Z), and columns that are known before.

    `beside` says whether latents come beside what is known, or instead of it.
    """

    table: pd.DataFrame
    target: np.ndarray
    volumes: np.ndarray
    known: tuple[np.ndarray, ...]
    beside: bool


class Questions:
    """The questions that the people can answer, each by name, and the answers known before."""

    def __init__(self, root: Path, study: Study):
        self.root, self.settings, self.asked = root, study.strata, {}
        self.inside = ndimage.find_objects(load_template(study.grid).brain.astype(np.int8))[0]
        for name, make in (("DS against euploid", self._groups), ("Alzheimer stage", self._stages),
                           ("faint disease", self._faint)):  # fmt: skip
            question = make(root, study)
            families, classes = (
                question.table["family"].to_numpy(str),
                1 + int(max(question.target)),
            )
            reason = crossval.too_few(question.target, families, classes, self.settings)
            if reason:
                record.say(f"{name} is not asked: {reason}")
            else:
                self.asked[name] = question
        self.known = {
            name: crossval.predict(q.table, q.target, self.settings, Features(columns=q.known))
            for name, q in self.asked.items()
        }

    @staticmethod
    def _groups(root: Path, study: Study) -> Question:
        people = People(root, GROUPS)
        known = (relative(people.volumes),)
        return Question(people.table, people.target, scans(root, people.table), known, False)

    @staticmethod
    def _stages(root: Path, study: Study) -> Question:
        people = People(root, ("DS",))
        staged = np.flatnonzero(people.table["stage"].isin(STAGES))
        table = people.table.iloc[staged].reset_index(drop=True)
        target = table["stage"].map(list(STAGES).index).to_numpy(int)
        known = covariates(table), relative(people.volumes[staged])
        return Question(table, target, scans(root, table), known, True)

    @staticmethod
    def _faint(root: Path, study: Study) -> Question:
        """Return the hard arm's judged people, at the severity that its ledger chose."""
        source, severity = Source(root, study), _faint_severity(root)
        rows = source.rows("euploid", *hard.SPLITS)
        people, target = hard.plant(source, rows, severity, hard.SEEDS["judge"])
        grown, volumes = (
            np.stack([source.fill(values) for values in of])
            for of in (people.log_jacobian, people.volumes)
        )
        table = source.table.iloc[rows].assign(seen_by="n/a").reset_index(drop=True)
        known = (relative(rivals.region_volumes(grown, source.grid)),)
        return Question(table, target, volumes, known, False)

    def score(self, name: str, features: str, answer: np.ndarray) -> dict:
        """Return a row of scores and the gain over what is known before, paired by person."""
        question, settings = self.asked[name], self.settings
        families = question.table["family"].to_numpy(str)
        row = {"question": name}
        row |= crossval.score(features, question.target, answer, families, settings)
        gain = crossval.gain(question.target, answer, self.known[name], families, settings)
        row["gain"], (row["gain_low"], row["gain_high"]) = gain
        return row


def scans(root: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the prepared volumes (N, X, Y, Z) of people, in their order."""
    place = pd.Index(dataset.load_table(root)["participant_id"])
    return dataset.load_volumes(root)[place.get_indexer(table["participant_id"])]


def score_kind(questions: Questions, kind: str, run: str) -> list[dict]:
    """Return a row a question for ridge regression on the latents of one trained VAE."""
    root, rows = questions.root, []
    model, fit = vae.load(root, run), dataset.select(dataset.load_table(root), "euploid", "fit")
    z = vae.encode(model, dataset.load_volumes(root)[fit])[0]
    statistics = {"mean": z.mean((0, 2, 3, 4)), "std": z.std((0, 2, 3, 4))}
    for name, question in questions.asked.items():
        z = standardise(vae.encode(model, question.volumes)[0], statistics)
        features = Features(dot_products(z), question.known if question.beside else ())
        answer = crossval.predict(question.table, question.target, questions.settings, features)
        rows.append(questions.score(name, kind, answer))
    return rows


def score_reader(questions: Questions, reader: str, seed: int) -> list[dict]:
    """Return a row a question for one network, trained in every fold."""
    reads, net = READERS[reader]
    model, rows = vae.load(questions.root), []
    for name, question in questions.asked.items():
        if reads == "latents":
            inputs = vae.encode(model, question.volumes)[0]
        else:  # as the VAE sees them: what departs from the mean, in its unit
            inputs = question.volumes - model.mean_volume[0, 0].numpy()
            inputs = inputs[:, None, *questions.inside] / model.settings.residual_scale
        answer = nets.predict(
            question.table, question.target, questions.settings, inputs, net, seed
        )
        rows.append(questions.score(name, reader, answer))
    return rows


def variant(study: Study, kind: str, seed: int) -> Vae:
    """Return the settings of a kind of latent's VAE."""
    plan = replace(
        study.vae.training, volumes=VOLUMES, seed=seed, checkpoint_every=VOLUMES // 2,
        validate_every=VOLUMES // 4,
    )  # fmt: skip
    return replace(study.vae, **KINDS[kind], training=plan)


def compare_latents(root: Path, study: Study) -> None:
    """Fill the ledger with every kind of latent and every reader, by seed; what is there stays."""
    torch.set_num_threads(1)  # the same arithmetic on any machine
    questions, settings = Questions(root, study), asdict(study.strata)
    for seed, name in product(SEEDS, (*KINDS, *READERS)):
        is_kind = name in KINDS
        vae_of = variant(study, name, seed) if is_kind else study.vae
        made_of = {"vae": asdict(vae_of), "strata": settings}
        if not is_kind:
            made_of["net"] = asdict(READERS[name][1])
        task = {**dataset.identify(root), "part": name, "seed": seed, "settings": made_of}
        key = record.row_key(task, CODE)
        if record.find_row(LEDGER, key):
            continue
        if is_kind:
            run = f"{RUNS}/{name}_{seed}"
            vae.train(root, replace(study, vae=vae_of), run)
            rows = score_kind(questions, name, run)
        else:
            rows = score_reader(questions, name, seed)
        record.add_row(LEDGER, key, {"scores": rows})
        told = ", ".join(f"{row['question']} {row['auc']:.3f}" for row in rows)
        record.say(f"{name}, seed {seed}: {told}")
