"""A trial on a simulated new site, so that the same people are known with and without it.

Held-out people are dealt to the site, from as many of both groups (entanglement 0) to everybody
with DS and no euploid (1). The null permutes who counts as DS before people are dealt: site and
group stay as entangled, and any AUROC above 0.5 is a leak.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dsnb import dataset, record, space
from dsnb.checks import BadInput
from dsnb.config import Study
from dsnb.norms import Normative
from dsnb.sites.methods import NOT_SEPARABLE, ComBat, recentre
from dsnb.volumes.scan import BRIGHTEST, WHITE_MATTER

NEW = "new site"
ENTANGLEMENT = (0.0, 0.5, 1.0)  # share of DS at the new site, minus that of euploids
FEWEST = 10  # judged people of each group
TOO_FEW = f"fewer than {FEWEST} euploids beside those known, or people with DS, held out"
ALONE = f"a number of the site, not of the group: {NOT_SEPARABLE}"
PENALTY = 0.1  # inverse L2 strength of the classifier, set beforehand
KEYS, STATISTICS = ["entanglement", "method", "known"], ["fpr", "kept", "auc", "auc_null"]


class People(NamedTuple):
    """Some people: features (N, F), covariates (N, K), site (N,), DS (N,) as 0 or 1, and their
    features (N, F) away from the new site.
    """

    features: np.ndarray
    covariates: np.ndarray
    site: np.ndarray
    ds: np.ndarray
    own: np.ndarray

    def rows(self, chosen: np.ndarray | slice) -> "People":
        """Return some of them."""
        return People(*(part[chosen] for part in self))


def rescan(volume: np.ndarray, person: str, study: Study) -> np.ndarray:
    """Return a prepared volume (X, Y, Z) as the simulated scanner would give it.

    Half of the bias field is the site's, half the person's, as is the Rician noise, by name.
    """
    scanner, grid = study.sites, study.grid
    rng = np.random.default_rng([scanner.seed, int(record.digest([person])[:8], 16)])
    knots = sum(g.standard_normal((4, 4, 4)) for g in (np.random.default_rng(scanner.seed), rng))
    bias = scanner.bias / np.sqrt(2) * ndimage.zoom(knots, np.divide(grid.shape, 4))
    seen = WHITE_MATTER * (volume / WHITE_MATTER) ** scanner.contrast
    seen = scanner.gain * seen * np.exp(bias)
    seen = ndimage.gaussian_filter(seen, scanner.blur_mm / 2.3548 / grid.voxel_mm)
    noise = scanner.noise * rng.standard_normal((2, *grid.shape))
    return np.where(volume > 0, np.clip(np.hypot(seen + noise[0], noise[1]), 0, BRIGHTEST), 0)


def gather(root: Path, study: Study) -> tuple[People, People]:
    """Return training people, and held-out people as they are at the new site.

    Features (N, 16) are the mean intensity of every region.
    """
    table, volumes = dataset.load_table(root), dataset.load_volumes(root)
    table = table.loc[np.concatenate([dataset.select(table, group) for group in space.GROUPS])]
    masks = space.region_masks(study.grid).reshape(len(space.REGIONS), -1)

    def regions(scan: np.ndarray) -> np.ndarray:
        return masks @ scan.ravel() / masks.sum(1)

    own = np.stack([regions(volumes[row].astype(np.float32)) for row in table.index])
    ds = (table["group"] == "DS").to_numpy(int)
    everybody = People(own, space.covariates(table), table["site"].to_numpy(str), ds, own)
    fitted = table["split"].isin([space.EUPLOID_SPLITS[0], space.DS_SPLITS[0]]).to_numpy()
    names = table.loc[~fitted, "participant_id"].items()
    moved = [regions(rescan(volumes[row].astype(np.float32), name, study)) for row, name in names]
    return everybody.rows(fitted), everybody.rows(~fitted)._replace(features=np.stack(moved))


# Methods: training people, judged people, known euploids of the new site -> z of both, freedom.


def _judge(train: People, test: People, known: People, rescale: bool | None = None) -> tuple:
    """Judge by the norm of the training euploids, at the new site re-centred unless None."""
    norm = Normative.fit(*train.rows(train.ds == 0)[:2])
    there = norm if rescale is None else recentre(norm, *known[:2], rescale)
    z = np.where((test.site == NEW)[:, None], there.z(*test[:2]), norm.z(*test[:2]))
    return norm.z(*train[:2]), z, there.freedom


def _combat(train: People, test: People, known: People, everybody: bool) -> tuple:
    """Harmonise in the fold, where no test label is read; or, the faulty way, on everybody."""

    def told(people: People, labels: bool = True) -> np.ndarray:
        return np.column_stack([people.covariates, labels * people.ds])

    seen = (train, known, test) if everybody else (train, known)
    seen = People(*map(np.concatenate, zip(*seen)))
    model = ComBat.fit(seen.features, seen.site, told(seen))
    parts = ((p, model.apply(p.features, p.site, told(p, everybody))) for p in (train, test))
    return _judge(*(people._replace(features=values) for people, values in parts), known)


FAULTY = "ComBat on everybody, group told"
METHODS = {
    "as it is": _judge,
    "re-centred": partial(_judge, rescale=False),
    "re-centred, rescaled": partial(_judge, rescale=True),
    "ComBat in the fold": partial(_combat, everybody=False),
    FAULTY: partial(_combat, everybody=True),
}
CHOOSY = [name for name in METHODS if name not in ("as it is", FAULTY)]  # learn from known people
HEADLINE = {
    "new_site_fpr": (0.0, "as it is", "fpr"),
    "new_site_fpr_recentred": (0.0, "re-centred, rescaled", "fpr"),
    "new_site_kept": (0.0, "re-centred, rescaled", "kept"),
    "combat_leak_auc": (1.0, FAULTY, "auc_null"),
}


def _deal(held: People, entanglement: float, most: int, rng) -> tuple[People, People]:
    """Deal people: a bootstrap sample to judge, at the new site and away, and euploids to know."""
    euploid, ds = (rng.permutation(np.flatnonzero(held.ds == group)) for group in (0, 1))
    n = min(len(ds), len(euploid) - most)
    some = held.rows(np.concatenate([rng.choice(rows, n) for rows in (euploid[most:], ds)]))
    shares = (1 - entanglement) / 2, (1 + entanglement) / 2
    new = np.concatenate([np.arange(n) < round(share * n) for share in shares])
    features = np.where(new[:, None], some.features, some.own)
    known = held._replace(site=np.full(len(held.site), NEW))
    known = known.rows(euploid[: most if entanglement < 1 else 0])
    return some._replace(features=features, site=np.where(new, NEW, some.site)), known


def _measure(method, train: People, test: People, known: People) -> dict:
    """Return false-positive rate and effect kept at the new site, and AUROC of everybody judged.

    `kept` is the slope through 0 of the DS group's z per region on that away from the site.
    """
    z_train, z, freedom = method(train, test, known)
    model = LogisticRegression(C=PENALTY, class_weight="balanced", solver="newton-cholesky")
    auc = roc_auc_score(test.ds, model.fit(z_train, train.ds).decision_function(z))
    healthy, ds = ((test.site == NEW) & (test.ds == group) for group in (0, 1))
    away = _judge(train, test._replace(features=test.own), known)[1][ds].mean(0)
    kept = z[ds].mean(0) @ away / (away @ away)
    flagged = np.abs(z[healthy]) > stats.t.isf(0.025, freedom)
    return {"fpr": flagged.mean() if healthy.any() else np.nan, "kept": kept, "auc": auc}


def _draw(train: People, held: People, known: list[int], rng) -> Iterator[dict]:
    """Yield a draw's statistics of each entanglement and method, or why the method refuses."""
    shuffled = [people._replace(ds=rng.permutation(people.ds)) for people in (train, held)]
    plans = [(name, k) for name in METHODS for k in (known if name in CHOOSY else [0])]
    for entanglement in ENTANGLEMENT:
        test, euploids = _deal(held, entanglement, max(known), rng)
        null, others = _deal(shuffled[1], entanglement, max(known), rng)
        for name, k in plans:
            row, first = dict(zip(KEYS, (entanglement, name, k))), slice(k or None)
            try:
                row |= _measure(METHODS[name], train, test, euploids.rows(first))
                found = _measure(METHODS[name], shuffled[0], null, others.rows(first))
                row["auc_null"] = found["auc"]
            except BadInput as problem:
                row["reason"] = str(problem)
            yield row


def _summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row each entanglement, method and number known: means, 95 % ranges, reasons."""
    alone = rows["reason"].isna() & rows["entanglement"].eq(1)
    groups = rows.assign(reason=rows["reason"].mask(alone, ALONE)).groupby(KEYS, sort=False)
    low, high = (groups[STATISTICS].quantile(q) for q in (0.025, 0.975))
    ranges = [groups[STATISTICS].mean(), low.add_suffix("_low"), high.add_suffix("_high")]
    table = pd.concat([*ranges, groups["reason"].first()], axis=1)
    table["auc_site_alone"] = (1 + table.index.get_level_values(0)) / 2
    return table.astype(object).where(table.notna(), None)


def entangle(root: Path, study: Study) -> dict:
    """Return headline and tables of the trial on the finished product `prepared`.

    Ranges hold 95 % of the draws: who is judged, where, and who is known; so they are what one
    new site would see. None comes with a reason.
    """
    train, held = gather(root, study)
    euploid, ds = np.bincount(held.ds, minlength=2)
    known = [k for k in study.sites.known if min(euploid - k, ds) >= FEWEST]
    rows, draws = [], study.sites.draws if known and train.ds.any() else 0
    for draw in range(draws):
        rows += _draw(train, held, known, np.random.default_rng([study.sites.seed, draw]))
        record.progress("new site", draw + 1, draws)
    table = pd.DataFrame(rows, columns=[*KEYS, *STATISTICS, "reason"])
    table = _summarise(table.astype(dict.fromkeys(STATISTICS, float)))
    headline, reasons = {}, {}
    for name, (entanglement, method, column) in HEADLINE.items():
        row = (entanglement, method, max(known, default=0) if method in CHOOSY else 0)
        headline[name] = table[column].get(row)
        if headline[name] is None:
            reasons[name] = table["reason"].get(row, TOO_FEW)
    tables = {"sites": table.reset_index().to_dict("records"), "reasons": reasons}
    return {"headline": headline, "tables": tables}
