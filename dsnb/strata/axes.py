"""What lies along the axes of the latents: covariates, pictures, and the way from euploid to DS."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.decomposition import PCA

from dsnb import dataset, latents, rivals, vae
from dsnb.anomaly.metrics import mean
from dsnb.config import Study
from dsnb.space import GROUPS, REGIONS, covariates, load_template
from dsnb.strata.people import People, dot_products, relative, standardise

COMPONENTS = 8  # that are compared with covariates
STEPS = (-2.0, 0.0, 2.0)  # SD of euploids, along a component
HALVES = 5  # pictures from one brain to another, ends included
MOVED = 20  # euploid test people who are made more DS-like
PENALTY = 1.0  # mean variances, of the discriminating direction
LEAST = 10  # people a group
DIRECTIONS = ("mean difference", "discriminating", "mean difference of scans")


@dataclass(frozen=True)
class Codes:
    """Everybody's latents (N, L) in units of their channels' SD, and the way back to volumes."""

    table: pd.DataFrame
    z: np.ndarray
    shape: tuple[int, ...]
    statistics: dict
    model: vae.NormativeVae
    fit: np.ndarray  # row numbers of euploid fit people

    @classmethod
    def load(cls, root: Path) -> "Codes":
        """Read the finished latents and their VAE."""
        table, z, _, statistics = latents.load(root)
        fit, flat = dataset.select(table, "euploid", "fit"), standardise(z, statistics)
        flat = flat.reshape(len(z), -1).astype(np.float32)
        return cls(table, flat, z.shape[1:], statistics, vae.load(root), fit)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Return the volumes (M, X, Y, Z) of latents (M, L)."""
        mean, sd = (self.statistics[name].reshape(-1, 1, 1, 1) for name in ("mean", "std"))
        return vae.decode(self.model, z.reshape(-1, *self.shape) * sd + mean)

    def encode(self, volumes: np.ndarray) -> np.ndarray:
        """Return the latents (M, L) of volumes (M, X, Y, Z)."""
        z = vae.encode(self.model, volumes)[0]
        return standardise(z, self.statistics).reshape(len(z), -1)

    def rows(self, group: str, *splits: str) -> np.ndarray:
        """Return row numbers of unseen people of a group in some splits."""
        rows = dataset.select(self.table, group, *splits)
        return rows[(self.table["seen_by"].iloc[rows] == "n/a").to_numpy()]


def components(codes: Codes) -> PCA:
    """Return the leading principal components of euploid fit people's latents."""
    count = min(COMPONENTS, len(codes.fit) - 1)
    return PCA(count, svd_solver="full").fit(codes.z[codes.fit])


def correlate(scores: np.ndarray, known: dict[str, np.ndarray]) -> list[dict]:
    """Return a row a component and covariate: r, p, and q over all rows (Benjamini-Hochberg).

    `scores` are (N, K); a numeric covariate (N,) has Spearman's r, a name (N,) the multiple
    correlation of its groups, which has no sign. A covariate that does not vary is left out.
    """
    rows = []
    for name, values in known.items():
        there = ~pd.isna(values)
        some, groups = values[there], pd.unique(values[there])
        if len(groups) < 2 or len(some) < LEAST:
            continue
        for component, score in enumerate(scores[there].T, start=1):
            if some.dtype.kind == "f":
                r, p = stats.spearmanr(score, some)
            else:
                parts = [score[some == group] for group in groups]
                within = sum(((part - part.mean()) ** 2).sum() for part in parts)
                r = np.sqrt(max(0, 1 - within / ((score - score.mean()) ** 2).sum()))
                p = stats.kruskal(*parts).pvalue
            rows.append({"component": component, "covariate": name, "r": float(r), "p": float(p)})
    if rows:
        adjusted = stats.false_discovery_control([row["p"] for row in rows])
        rows = [row | {"q": float(q)} for row, q in zip(rows, adjusted)]
    return rows


def covariate_table(root: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return unseen euploids' scores (N, K) on the components, and what is known of them."""
    people, codes = People(root, ("euploid",)), Codes.load(root)
    place = pd.Index(codes.table["participant_id"]).get_indexer(people.table["participant_id"])
    scores, table = components(codes).transform(codes.z[place]), people.table
    numbers = {"age": "age", "head size": "tiv_ml", "motion": "motion"}
    known = {name: table[column].to_numpy(float) for name, column in numbers.items()}
    known |= {name: table[name].to_numpy(str) for name in ("sex", "site")}
    shares = relative(people.volumes)
    return scores, known | {region: shares[:, i] for i, region in enumerate(REGIONS)}


def traverse(codes: Codes, count: int = 3) -> dict[int, np.ndarray]:
    """Return {component: volumes (S, X, Y, Z)} at steps along it from the mean euploid's latent."""
    pca, found = components(codes), {}
    spread = pca.transform(codes.z[codes.fit]).std(0)
    for k in range(min(count, len(spread))):
        steps = np.array(STEPS)[:, None] * spread[k] * pca.components_[k]
        found[k + 1] = codes.decode((pca.mean_ + steps).astype(np.float32))
    return found


def edge_energy(volumes: np.ndarray) -> np.ndarray:
    """Return the mean squared slope (N,) of volumes (N, X, Y, Z), which blur takes away."""
    return sum(np.square(np.diff(volumes, axis=axis)).mean((1, 2, 3)) for axis in (1, 2, 3))


def interpolate(codes: Codes, one: int, other: int) -> np.ndarray:
    """Return volumes (S, X, Y, Z) on the straight line between two people's latents."""
    share = np.linspace(0, 1, HALVES, dtype=np.float32)[:, None]
    return codes.decode((1 - share) * codes.z[one] + share * codes.z[other])


def midpoints(codes: Codes, settings) -> list[dict]:
    """Return how sharp the middle of two unseen euploids is, as a share of its ends' edge energy.

    Of the latent's middle, and of the plain mean of the two decoded volumes.
    """
    rows = codes.rows("euploid", "test")
    rows = rows[: len(rows) // 2 * 2]
    if not len(rows):
        return []
    one, other = codes.z[rows[::2]], codes.z[rows[1::2]]
    ends = [codes.decode(side) for side in (one, other)]
    sharp = np.mean([edge_energy(end) for end in ends], axis=0)
    middles = {"latents": codes.decode((one + other) / 2), "volumes": np.mean(ends, axis=0)}
    return [
        {"middle of": name, "pairs": len(sharp)} | mean("edge", edge_energy(v) / sharp, settings)
        for name, v in middles.items()
    ]  # fmt: skip


def group_effect(values: np.ndarray, table: pd.DataFrame) -> np.ndarray:
    """Return DS minus euploid (D,) of values (N, D), age and sex held by least squares."""
    group = (table["group"] == "DS").to_numpy(float)
    design = np.column_stack([group, np.ones(len(group)), covariates(table)])
    return np.linalg.lstsq(design, values, rcond=None)[0][0]


def learners(codes: Codes) -> np.ndarray:
    """Return row numbers of those who teach a direction: unseen people outside the test splits."""
    euploids = codes.rows("euploid", "scale", "calibration")
    return np.concatenate([euploids, codes.rows("DS", "generator-fit", "validation")])


def directions(codes: Codes) -> dict[str, np.ndarray]:
    """Return the ways (L,) from euploid to DS, learnt on `learners`.

    `mean difference` has age and sex held. `discriminating` is ridge regression's weight, as long
    as moves its score by as much: a weight says what tells groups apart, the mean difference what
    differs (Haufe et al., NeuroImage 87:96, 2014).
    """
    rows = learners(codes)
    z, group = codes.z[rows], (codes.table["group"].iloc[rows] == "DS").to_numpy(float)
    shift = group_effect(z, codes.table.iloc[rows])
    kernel, centred = dot_products(z), z - z.mean(0)
    penalty = PENALTY * np.trace(kernel) / len(kernel)
    weight = centred.T @ np.linalg.solve(
        kernel + penalty * np.eye(len(kernel)), group - group.mean()
    )
    along = weight * (weight @ shift) / (weight @ weight)
    return {"mean difference": shift, "discriminating": along}


def identified(changed: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return whether each changed volume i (M, V) is nearest to known i of (N, V), (M,) bool.

    What all have in common, the mean change, is taken off first.
    """
    changed, known = (v - v[: len(changed)].mean(0) for v in (changed, known))
    apart = (changed**2).sum(1)[:, None] + (known**2).sum(1) - 2 * changed @ known.T
    return apart.argmin(1) == np.arange(len(changed))


def move_towards_ds(root: Path, study: Study) -> list[dict]:
    """Make euploid test people more DS-like; return a row a direction and region.

    Region volumes are measured by registration, as shares, before and after; `observed` is how
    unseen test people with DS differ from euploids by the same ruler, age and sex held. Each row
    repeats its direction's correlation and slope over regions, the share of people who are still
    recognised among all test people, and the share of the wanted move that encoding finds again.
    """
    codes, settings = Codes.load(root), study.maps
    rows, people = codes.rows("euploid", "test"), People(root, GROUPS)
    tested = people.table["split"].isin(["test"]).to_numpy()
    taught = learners(codes)
    teach = (codes.table["group"].iloc[taught] == "DS").sum()  # planted twins may all be seen
    sides = len(rows), (tested & (people.target == 1)).sum(), teach, len(taught) - teach
    if min(sides) < LEAST:
        return []
    known, table = relative(people.volumes[tested]), people.table[tested]
    observed = _observe(known, table, settings)  # (1 + draws, R), the first of everybody
    brain, template = load_template(study.grid).brain, rivals.load_template(root)
    decoded = codes.decode(codes.z[rows])
    some, found = slice(0, MOVED), []

    def measure(volumes: np.ndarray) -> np.ndarray:
        grown = rivals.register_volumes(rivals.without_halo(volumes), template, study)
        return relative(rivals.region_volumes(grown, study.grid))

    before, ways = measure(decoded[some]), directions(codes)
    scans = np.asarray(dataset.load_volumes(root)[taught], np.float32)
    scan_shift = group_effect(scans.reshape(len(scans), -1), codes.table.iloc[taught])
    weight = ways["discriminating"]
    for name in DIRECTIONS:
        if name in ways:
            moved = codes.decode(codes.z[rows[some]] + ways[name].astype(np.float32))
        else:
            moved = decoded[some] + scan_shift.reshape(decoded.shape[1:]).astype(np.float32)
        change = measure(moved) - before
        kept = (codes.encode(moved) - codes.encode(decoded[some])) @ weight / (weight @ weight)
        same = identified(moved[:, brain], decoded[:, brain])
        about = {"direction": name, "people": len(moved), **_agree(change, observed, settings),
                 "recognised": float(same.mean()), "score_kept": float(kept.mean())}  # fmt: skip
        for i, region in enumerate(REGIONS):
            row = {"region": region, **_with_interval("observed", observed[:, i])}
            found.append(about | row | mean("change", change[:, i], settings))
    return found


def _with_interval(name: str, values: np.ndarray) -> dict:
    """Return the first value and the 95 % interval of the others, as columns."""
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _observe(values: np.ndarray, table: pd.DataFrame, settings) -> np.ndarray:
    """Return group effects (1 + draws, R): of everybody, and of people redrawn within groups."""
    rng, group = np.random.default_rng(settings.seed), (table["group"] == "DS").to_numpy()
    draws = [np.arange(len(table))]
    for _ in range(settings.bootstraps):
        draws.append(np.concatenate([rng.choice(np.flatnonzero(group == g), (group == g).sum())
                                     for g in (False, True)]))  # fmt: skip
    return np.stack([group_effect(values[rows], table.iloc[rows]) for rows in draws])


def _agree(change: np.ndarray, observed: np.ndarray, settings) -> dict:
    """Return correlation and slope over regions of the mean change (N, R) on what is observed.

    Intervals redraw the moved people and those observed; the direction itself stays.
    """
    rng, pairs = np.random.default_rng(settings.seed), []
    for draw, known in enumerate(observed):
        rows = rng.integers(len(change), size=len(change)) if draw else slice(None)
        effect = change[rows].mean(0)
        pairs.append((np.corrcoef(effect, known)[0, 1], known @ effect / (known @ known)))
    correlation, slope = np.array(pairs).T
    return _with_interval("correlation", correlation) | _with_interval("slope", slope)


def describe(root: Path, study: Study) -> tuple[dict, dict, dict]:
    """Return headline values, the tables `correlations`, `midpoints`, `towards_ds`, and reasons."""
    scores, known = covariate_table(root)
    towards, headline = pd.DataFrame(move_towards_ds(root, study)), {}
    for word in ("correlation", "slope"):
        headline |= dict.fromkeys((f"ds_like_{word}", f"ds_like_{word}_ci"))
        if len(towards):
            own = towards[towards["direction"] == DIRECTIONS[0]]
            headline[f"ds_like_{word}"] = float(own[word].iloc[0])
            headline[f"ds_like_{word}_ci"] = own[[f"{word}_low", f"{word}_high"]].iloc[0].tolist()
    tables = {
        "correlations": correlate(scores, known),
        "midpoints": midpoints(Codes.load(root), study.maps),
        "towards_ds": towards.to_dict("records"),
    }
    reason = f"fewer than {LEAST} unseen people in a group, to teach or to be judged"
    reasons = {name: reason for name, value in headline.items() if value is None}
    return headline, tables, reasons
