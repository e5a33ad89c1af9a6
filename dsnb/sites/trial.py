"""A trial on a simulated new site, so that the same people are known with and without it.

Held-out people are dealt to the site in three shares of DS, from balanced to entangled. The null
permutes who counts as DS before people are dealt: entanglement stays, the truth becomes AUROC 0.5.
"""

from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression

from dsnb import dataset, record, space
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.norms import Normative
from dsnb.phantom.fields import COARSE, onto, smooth_noise
from dsnb.sites.methods import NOT_SEPARABLE, ComBat, Recentred
from dsnb.volumes.scan import BRIGHTEST, WHITE_MATTER

NEW = "new site"
SHARES = (0.0, 0.5, 1.0)  # of DS at the new site; the same share of judged euploids stays away
FEWEST = 10  # judged people of each group
PENALTY = 0.1  # inverse L2 strength of the classifier, set beforehand
ALONE = f"a number of the site, not of the group: {NOT_SEPARABLE}"
KEYS, STATISTICS = ["ds_share", "method", "known"], ["fpr", "kept", "auc", "auc_new"]


class People(NamedTuple):
    """Some people: features (N, F), covariates (N, K), site (N,), and DS (N,) as 0 or 1."""

    features: np.ndarray
    covariates: np.ndarray
    site: np.ndarray
    ds: np.ndarray

    def rows(self, chosen: np.ndarray | slice) -> "People":
        """Return some of them."""
        return People(*(part[chosen] for part in self))


def rescan(volume: np.ndarray, person: str, study: Study) -> np.ndarray:
    """Return a prepared volume (X, Y, Z) as the simulated scanner would give it.

    Half of the bias field is the site's, half the person's, as is the Rician noise, by name.
    """
    scanner, grid = study.sites, study.grid
    rng = np.random.default_rng([scanner.seed, int(record.digest([person])[:8], 16)])
    halves = (smooth_noise(g, 1, 45.0)[0] for g in (np.random.default_rng(scanner.seed), rng))
    bias = onto(np.float32(scanner.bias / np.sqrt(2)) * sum(halves), COARSE, grid)
    seen = WHITE_MATTER * (volume / np.float32(WHITE_MATTER)) ** np.float32(scanner.contrast)
    seen = np.float32(scanner.gain) * seen * np.exp(bias)
    seen = ndimage.gaussian_filter(seen, scanner.blur_mm / 2.3548 / grid.voxel_mm)
    noise = rng.standard_normal((2, *grid.shape), np.float32) * np.float32(scanner.noise)
    return np.where(volume > 0, np.clip(np.hypot(seen + noise[0], noise[1]), 0, BRIGHTEST), 0)


def gather(root: Path, study: Study) -> tuple[People, People, People]:
    """Return training people, held-out people at their own sites, and the same at the new site.

    Features (N, 16) are the mean intensity of every region.
    """
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    masks = space.region_masks(study.grid).reshape(len(space.REGIONS), -1)
    weights = masks / masks.sum(1, keepdims=True)

    def people(euploid: tuple, ds: tuple, moved: bool = False) -> People:
        groups = (("euploid", euploid), ("DS", ds))
        chosen = np.concatenate([dataset.select(table, name, *splits) for name, splits in groups])
        some, features = table.loc[chosen], np.empty((len(chosen), len(weights)))
        for place, (row, name) in enumerate(zip(chosen, some["participant_id"])):
            volume = np.asarray(volumes[row], np.float32)
            features[place] = weights @ (rescan(volume, name, study) if moved else volume).ravel()
        site = np.full(len(some), NEW) if moved else some["site"].to_numpy(str)
        return People(features, space.covariates(some), site, (some["group"] == "DS").to_numpy(int))

    held = ("validation", "scale", "calibration", "test"), ("validation", "test")
    return people(("fit",), ("generator-fit",)), people(*held), people(*held, moved=True)


# Methods: training people, judged people, known euploids of the new site -> z of both, freedom.


def _norm(train: People) -> Normative:
    healthy = train.rows(train.ds == 0)
    return Normative.fit(healthy.features, healthy.covariates)


def _plain(train: People, test: People, known: People) -> tuple:
    norm = _norm(train)
    return (*(norm.z(people.features, people.covariates) for people in (train, test)), norm.freedom)


def _recentred(train: People, test: People, known: People, rescale: bool) -> tuple:
    new = Recentred.fit(_norm(train), known.features, known.covariates, rescale)
    z_train, z, _ = _plain(train, test, known)
    moved = new.z(test.features, test.covariates)
    return z_train, np.where((test.site == NEW)[:, None], moved, z), new.freedom


def _combat(train: People, test: People, known: People, told: bool, everybody: bool) -> tuple:
    """Harmonise in the fold: `told` the training labels only; or, the faulty way, on everybody."""

    def design(people: People, labels: bool) -> np.ndarray:
        return np.column_stack([people.covariates, labels * people.ds])[:, : 2 + told]

    every = People(*map(np.concatenate, zip(train, test, known)))
    seen = every if everybody else train
    model = ComBat.fit(seen.features, seen.site, design(seen, True))
    if not everybody:
        model = model.add_site(NEW, known.features, design(known, True))
    parts = ((p, model.apply(p.features, p.site, design(p, everybody))) for p in (train, test))
    return _plain(*(people._replace(features=values) for people, values in parts), known)


SAME = "without the new site"  # the same people, judged by the same code: what to compare with
METHODS = {
    SAME: _plain,
    "as it is": _plain,
    "re-centred": partial(_recentred, rescale=False),
    "re-centred, rescaled": partial(_recentred, rescale=True),
    "ComBat in the fold": partial(_combat, told=False, everybody=False),
    "ComBat in the fold, group told": partial(_combat, told=True, everybody=False),
    "ComBat on everybody": partial(_combat, told=False, everybody=True),
    "ComBat on everybody, group told": partial(_combat, told=True, everybody=True),
}
CHOOSY = [name for name in METHODS if "re-c" in name or "fold" in name]  # learn from known people


def _deal(held: People, moved: People, share: float, most: int, rng) -> tuple:
    """Deal held-out people: judged ones (a bootstrap sample of n a group), the same away from the
    site, and its known euploids, who are never judged.
    """
    euploid, ds = (rng.permutation(np.flatnonzero(held.ds == group)) for group in (0, 1))
    n = min(len(ds), len(euploid) - most)
    chosen = np.concatenate([rng.choice(rows, n) for rows in (euploid[most:], ds)])
    new = np.r_[np.arange(n) < round((1 - share) * n), np.arange(n) < round(share * n)]
    away = held.rows(chosen)
    features = np.where(new[:, None], moved.features[chosen], away.features)
    test = away._replace(features=features, site=np.where(new, NEW, away.site))
    return test, away, moved._replace(ds=held.ds).rows(euploid[: most if share < 1 else 0])


def _measure(method, train: People, test: People, away: People, known: People) -> dict:
    """Return a method's false-positive rate, effect kept, and AUROC of all and at the new site.

    `kept` is the slope through 0 of the DS group's z per region on that away from the site.
    """
    z_train, z, freedom = method(train, test, known)
    model = LogisticRegression(C=PENALTY, class_weight="balanced", solver="newton-cholesky")
    score, new = model.fit(z_train, train.ds).decision_function(z), test.site == NEW
    wins = score[test.ds == 1, None] > score[test.ds == 0]  # no ties: nobody is in both groups
    healthy, ds = new & (test.ds == 0), new & (test.ds == 1)
    found = {"auc": wins.mean()}
    if healthy.any():
        found["fpr"] = (np.abs(z[healthy]) > stats.t.isf(0.025, freedom)).mean()
    if ds.any():
        seen, true = z[ds].mean(0), _plain(train, away.rows(ds), known)[1].mean(0)
        found["kept"] = seen @ true / (true @ true)
    if healthy.any() and ds.any():
        found["auc_new"] = wins[new[test.ds == 1]][:, new[test.ds == 0]].mean()
    return found


def _draw(train: People, held: People, moved: People, known: list[int], rng) -> Iterator[dict]:
    """Yield one draw's statistics of every share and method, or why the method refuses."""
    permuted = [people._replace(ds=rng.permutation(people.ds)) for people in (train, held)]
    plans = [(name, k) for name in METHODS for k in (known if name in CHOOSY else [None])]
    for share, null in product(SHARES, (False, True)):
        some, others = permuted if null else (train, held)
        test, away, euploids = _deal(others, moved, share, max(known), rng)
        for name, k in plans:
            row = {"ds_share": share, "method": name, "known": k or 0, "null": null}
            judged = test._replace(features=away.features) if name == SAME else test
            try:
                found = _measure(METHODS[name], some, judged, away, euploids.rows(slice(k)))
            except BadInput as problem:
                found = {"reason": str(problem)}
            yield row | found


def _summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a share, method and number of known euploids: means, 95 % ranges, null."""
    ends = {"": "mean", "_low": partial(pd.Series.quantile, q=0.025),
            "_high": partial(pd.Series.quantile, q=0.975)}  # fmt: skip
    columns = {name + end: (name, how) for name in STATISTICS for end, how in ends.items()}
    nulls = {"auc_null" + end: ("auc", how) for end, how in ends.items()}
    alone = rows["reason"].isna() & rows["ds_share"].eq(1) & rows["method"].ne(SAME)
    rows["reason"] = rows["reason"].mask(alone, ALONE)
    seen = rows[~rows["null"]].groupby(KEYS, sort=False).agg(**columns, reason=("reason", "first"))
    baseline = [max(share, 1 - share) for share, *_ in seen.index]
    return seen.join(rows[rows["null"]].groupby(KEYS).agg(**nulls)).assign(auc_site_alone=baseline)


def entangle(root: Path, study: Study) -> dict:
    """Return headline and tables of the trial on the finished product `prepared`.

    Ranges hold 95 % of the draws: who is judged, where, and who is known; so they are what one
    new site would see. None comes with a reason.
    """
    names = ("new_site_fpr", "new_site_fpr_recentred", "new_site_kept", "combat_leak_auc")
    train, held, moved = gather(root, study)
    euploid, ds = np.bincount(held.ds, minlength=2)
    known = [k for k in study.sites.known if min(euploid - k, ds) >= FEWEST]
    aged = np.isfinite(np.vstack([train.covariates, held.covariates])).all()
    if not (known and aged and train.ds.any()):
        reason = f"{euploid} euploids and {ds} people with DS held out: too few for a new site"
        reason = reason if aged else "somebody's age or sex is missing"
        tables = {"reasons": dict.fromkeys(names, reason)}
        return {"headline": dict.fromkeys(names), "tables": tables}
    rows = []
    for draw in range(study.sites.draws):
        rng = np.random.default_rng([study.sites.seed, draw])
        rows += _draw(train, held, moved, known, rng)
        record.progress("new site", draw + 1, study.sites.draws)
    table = _summarise(pd.DataFrame(rows, columns=[*KEYS, "null", "reason", *STATISTICS]))
    best, faulty = (0.5, "re-centred, rescaled", max(known)), (1.0, list(METHODS)[-1], 0)
    cells = (((0.5, "as it is", 0), "fpr"), (best, "fpr"), (best, "kept"), (faulty, "auc_null"))
    reasons = {n: table.loc[row, "reason"] for n, (row, of) in zip(names, cells)
               if pd.isna(table.loc[row, of])}  # fmt: skip
    table = table.astype(object).where(table.notna(), None)
    headline = {name: table.loc[cell] for name, cell in zip(names, cells)}
    tables = {"sites": table.reset_index().to_dict("records"), "reasons": reasons}
    return {"headline": headline, "tables": tables}
