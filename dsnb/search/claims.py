"""What pages 04 to 08 claim with 95 % intervals, asked of cohorts whose truth is known.

Each is a row [low, value, high, truth], made by the page's own code. The truth is what an interval
claims: of a classifier, its score on very many further people, each answered by one fold's model
of that cohort; else the value of the population; None where it is the mean of the values.
"""

import numpy as np
from scipy.stats import norm

from dsnb import fidelity, latents
from dsnb.anomaly import metrics
from dsnb.anomaly.people import CANDIDATES, PRIMARY
from dsnb.config import Cohort, Maps, Study, replace
from dsnb.fidelity import morphology, realism
from dsnb.phantom import fields
from dsnb.privacy import attacks
from dsnb.search import unrendered
from dsnb.search.unrendered import Seen
from dsnb.space import GROUPS, REGIONS, STAGES, Grid, covariates
from dsnb.strata import axes, crossval, permutation
from dsnb.strata.crossval import Features
from dsnb.strata.people import dot_products
from dsnb.strata.progress import DEALS

FAINT = 0.45  # severity of the hard arm, at which volumes reach about 0.8 balanced accuracy
MADE, SEVERITY = {"euploid": 100, "ds": 100}, 0.8  # synthetic people, whose effects are too small
MISFIT = 0.03  # and wrong by as much in log volume, SD over regions; as are moves towards DS [E]
ATTACKS = {"attack_auc_upper": 0.54, "weights_attack_auc_upper": 0.84}  # their true AUC
OTHERS = (310, 105)  # euploids and people with DS who taught nobody, of page 08's attacks
EUPLOIDS = 60  # test people of page 05
DISCOVERING, FALSE = 0.2, (1, 9)  # who has discoveries; their false share, a beta variable [E]
Found = dict[str, list]


def misfit() -> np.ndarray:
    """Return by how much a model's effect on log volumes (R,) is wrong, the same in all cohorts."""
    return MISFIT * np.random.default_rng(1).standard_normal(len(REGIONS))


def synthesise(asked: Cohort, grid: Grid) -> Seen:
    """Draw people of the kind of the synthetic cohort."""
    drawn = unrendered.draw(replace(asked, severity=SEVERITY), grid)
    true = drawn.true + np.outer(drawn.ds, misfit())
    return unrendered.see(drawn.table, true, asked.seed, grid)


def answer(table, target, settings, features: Features, count: int, deals: int) -> np.ndarray:
    """Return answers: out of fold for the first `count` people, as `predict` gives; and the rest's.

    Each of the rest is answered, in every deal, by one fold's model of those first people.
    """
    families, rest, answers = table["family"].to_numpy(str), np.arange(count, len(target)), []
    for deal in range(deals):
        found, seed = np.empty((len(target), target.max() + 1)), settings.seed + deal
        folds = crossval.split(target[:count], families[:count], settings.outer_folds, seed)
        for fold, (train, test) in enumerate(folds):
            asked = np.r_[test, rest[fold :: len(folds)]]
            found[asked] = crossval.fit(features, target, families, train, asked, settings)
        answers.append(found)
    return np.mean(answers, axis=0)


def ask(
    names: dict[str, str], both: Seen, count: int, target: np.ndarray, settings,
    known: tuple = (), deals: int = 1,
) -> tuple[Found, np.ndarray]:  # fmt: skip
    """Return gains {name: stand-in} over volumes, and the answers of the last stand-in.

    The first `count` people are the cohort. With `known` columns, stand-ins stand beside them.
    """
    columns = (*known, both.shares)
    own, rest, families = slice(count), slice(count, None), both.table["family"].to_numpy(str)

    def told(*blocks: np.ndarray) -> np.ndarray:
        return answer(both.table, target, settings, Features(columns=blocks), count, deals)

    base, found = told(*columns), {}
    for name, of in names.items():
        better = told(both.sets[of], *(columns if known else ()))
        value, (low, high) = crossval.gain(
            target[own], better[own], base[own], families[own], settings
        )
        truth = crossval.agreement(target[rest], better[rest])
        truth -= crossval.agreement(target[rest], base[rest])
        found[name] = [low, value, high, truth]
    return found, better


def split(some: Seen, settings) -> dict[str, np.ndarray]:
    """Return rows of euploids who fit and whom nobody saw, of DS who teach and who test."""
    rows = {}
    for ds, shares in enumerate((settings.euploid_split, settings.ds_split)):
        places = np.flatnonzero(some.ds == ds)
        ends = (np.cumsum(shares) * len(places) / sum(shares)).astype(int)
        rows |= {("fit", "teach")[ds]: places[: ends[0]],
                 ("unseen", "test")[ds]: places[ends[1] :]}  # fmt: skip
    return rows


def ask_strata(some: Seen, rows: dict, worlds: tuple, study: Study, seed: int) -> Found:
    """Check page 06: groups, stages, the faint disease, and the permutation test."""
    settings, many = study.strata, worlds[0]
    ds, euploid = np.flatnonzero(some.ds), rows["unseen"]
    own = some.take(np.r_[euploid, ds])
    both, count, target = own.join(many), len(own.ds), np.r_[own.ds, many.ds].astype(int)
    families = own.table["family"].to_numpy(str)
    names = {"06 auc_ds_undone_gain_ci": "undone", "06 auc_ds_gain_ci": "latents"}
    found, latent = ask(names, both, count, target, settings)
    score = crossval.score("latents", target[:count], latent[:count], families, settings)
    truth = crossval.agreement(target[count:], latent[count:])
    found["06 auc_ds"] = [score["auc_low"], score["auc"], score["auc_high"], truth]
    staged = some.take(ds).join(many.take(np.flatnonzero(many.ds)))
    stage = staged.table["stage"].map(list(STAGES).index).to_numpy(int)
    names = {"06 stage_gain_undone_ci": "undone", "06 stage_gain_ci": "latents"}
    known = (covariates(staged.table),)
    found |= ask(names, staged, len(ds), stage, settings, known, DEALS)[0]
    healthy = some.take(euploid).join(many.take(np.flatnonzero(~many.ds)))
    ill = np.arange(len(healthy.ds)) % 2
    true = healthy.true + np.outer(FAINT * ill, fields.targets(0.0, 1.0))
    faint = unrendered.see(healthy.table, true, seed, study.grid)
    names = {"06 hard_gain_undone_ci": "undone", "06 hard_gain_ci": "voxels"}
    found |= ask(names, faint, len(euploid), ill, settings)[0]
    shuffled = np.random.default_rng(seed).permutation(target[:count])
    kernel = dot_products(own.sets["latents"])
    p = permutation.permutation_p(own.table, shuffled, kernel, settings)
    return found | {"06 permutation_p": [0.0, p, p, crossval.LEVEL]}  # at 5 %, nothing is there


def ask_directions(some: Seen, rows: dict, worlds: tuple, study: Study, seed: int) -> Found:
    """Check page 04: the leak's floor where nothing leaks, and moves along a learnt direction."""
    leak = latents.leak_floor(*(some.sets["latents"][rows[k]] for k in ("unseen", "fit")))
    found = {"04 leak_floor_auc": [leak["low"], leak["auc"], leak["high"], 0.5]}
    tests = len(rows["test"])
    teach = some.take(np.r_[rows["unseen"][tests:], rows["teach"]])
    judged = some.take(np.r_[rows["unseen"][:tests], rows["test"]])
    direction = axes.group_effect(teach.shares, teach.table) + misfit()
    rng = np.random.default_rng([seed, 96])
    change = direction + unrendered.ERROR * rng.standard_normal((axes.MOVED, len(direction)))
    seen = axes._agree(change, axes._observe(judged.shares, judged.table, study.maps), study.maps)
    observed = axes.group_effect(worlds[0].shares, worlds[0].table)
    truth = morphology.agreement(observed, direction)
    for word, true in zip(("correlation", "slope"), truth):
        limits = [seen[f"{word}_low"], seen[word], seen[f"{word}_high"]]
        found[f"04 ds_like_{word}_ci"] = [*limits, true]
    return found


def ask_fidelity(some: Seen, rows: dict, worlds: tuple, study: Study, seed: int) -> Found:
    """Check page 08: effects, reconstructions, distance, use, and attacks of a known AUC.

    `worlds` are very many people of the phantom, and of the kind of the synthetic cohort.
    """
    settings, rng = study.release, np.random.default_rng([seed, 95])
    real = some.take(np.r_[rows["unseen"], rows["test"]])
    taught = some.take(np.r_[rows["fit"], rows["teach"]])
    made = synthesise(replace(study.cohort, **MADE, seed=10**5 + seed), study.grid)
    numbers, _ = morphology.compare_effects(real.shape(), made.shape(), settings)
    many = [world.shape() for world in worlds]
    true = [morphology.effects(world)[morphology.EFFECTS] for world in many]
    truths = dict(zip(("effect_correlation", "effect_slope"), morphology.agreement(*true)))
    half, count = settings.reconstructions, len(rows["unseen"])
    few = real.take(np.r_[:half, count : count + half]).shape()
    drawn, again = (
        one._replace(logs=one.logs + unrendered.ERROR * rng.standard_normal(one.logs.shape))
        for one in (few, many[0])
    )
    numbers |= morphology.ceiling(few, drawn, settings)
    effects = morphology.effects(again)[morphology.EFFECTS]
    truths["reconstruction_slope"] = morphology.agreement(true[0], effects)[1]
    numbers |= _distance(real, made, worlds[0], settings)
    truths["kid"] = None  # unbiased
    for name, side in (("tstr_bacc", made), ("trtr_bacc", taught)):
        pairs = [(one.sets["voxels"], one.ds) for one in (side, real, worlds[0])]
        numbers[name], numbers[f"{name}_ci"] = realism.utility(*pairs[:2], settings)
        once = replace(settings, bootstraps=1)
        truths[name] = realism.utility(pairs[0], pairs[2], once)[0]
    found = {}
    for name, truth in truths.items():
        low, high = numbers[f"{name}_ci"]
        found[f"08 {name}_ci"] = [low, numbers[name], high, truth]
    return found | ask_attacks(taught.ds, np.repeat([False, True], OTHERS), rng)


def _distance(real: Seen, made: Seen, teach: Seen, settings) -> dict:
    """Return KID of whitened stand-ins and its interval, groups apart."""
    near = {
        name: {g: side.sets["voxels"][side.ds == ds] for ds, g in enumerate(GROUPS)}
        for name, side in (("real", real), ("synthetic", made))
    }
    spaces = {"voxels": realism.whiten(teach.sets["voxels"], near)}
    return fidelity._looks(spaces, {}, settings)[0]


def ask_attacks(members: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> Found:
    """Check the upper bounds of attacks, by normal scores, on people with DS or not (N,)."""
    found = {}
    for name, auc in ATTACKS.items():
        shift = np.sqrt(2) * norm.ppf(auc)
        scores = [rng.standard_normal(len(side)) + side for side in (members, others)]
        row = attacks.attack_row(name, "", scores[0] - shift, scores[1], members, others)
        found[f"08 {name}"] = [0.0, row["auc"], row["upper"], auc]
    return found


def ask_maps(each: dict, settings: Maps, seed: int) -> Found:
    """Check page 05: people redrawn with replacement from `each` {norm: {"lift", "gain": (N,)}}.

    The best rival is chosen anew in every cohort; the truth is the ratio to the best of the pool.
    """
    rng, found = np.random.default_rng([seed, 94]), {}
    people, plain = len(each[PRIMARY]["lift"]), [c.name for c in CANDIDATES if not c.deep]
    some = rng.integers(0, people, people)
    for word in ("lift", "gain"):
        pool = {name: np.array(of[word]) for name, of in each.items()}
        drawn = {name: values[some] for name, values in pool.items()}
        row = metrics.mean("mean", drawn[PRIMARY], settings)
        truth = pool[PRIMARY].mean()
        found[f"05 {word}"] = [row["mean_low"], row["mean"], row["mean_high"], truth]
        best, true = (max(plain, key=lambda name: of[name].mean()) for of in (drawn, pool))
        limits = metrics.ratio_interval(drawn[PRIMARY], drawn[best], settings)
        if limits:  # else the best rival is not shown to be above 0
            value = drawn[PRIMARY].mean() / drawn[best].mean()
            found[f"05 {word}_ratio_ci"] = [limits[0], value, limits[1], truth / pool[true].mean()]
    flags = metrics.flagged(rng.random((EUPLOIDS, 1)), settings.q)
    found["05 euploids_flagged"] = [flags["low"], flags["share"], flags["high"], settings.q]
    false = (rng.random(people) < DISCOVERING) * rng.beta(*FALSE, people)
    row, truth = metrics.mean("fdp", false, settings), DISCOVERING * FALSE[0] / sum(FALSE)
    found["05 fdp_at_q05"] = [row["fdp_low"], row["fdp"], row["fdp_high"], truth]
    return found
