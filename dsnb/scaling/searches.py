"""The ledgers of page 09 as tables and words: the search's trials, and grids against `lean`."""

import numpy as np
import optuna
import pandas as pd
from scipy import stats

from dsnb import record
from dsnb.config import vae_settings
from dsnb.scaling.tables import PRESET, read_rows
from dsnb.search import ablations, grids, trials

# Grids whose rows are the ablations' (page 03); `lean` is their base, too.
ABLATED = {
    "architecture": ("morph", "monai"),
    "latent grid": ("eighth", "pooled", "flat", "four_channels"),
    "mean trick": ("no_departure", "loud_start"),
    "sharp mode": ("perceptual", "adversarial", "sharp"),
    "length": ("long",),
}
# Measure -> its label with unit, the digits to say, and whether more is better.
COMPARED = {
    "psnr_db": ("PSNR (dB)", 2, 1),
    "region_error_pct": ("region error (%)", 2, -1),
    "effect_kept": ("effect kept", 3, 1),
}
KEYS = ["cohort", "fold", "seed"]  # what a variant and `lean` have in common
LEVEL = 0.05  # of all comparisons of a cohort together
RUNS = 3  # seeds, or folds, without which nothing is compared
DRAWS = 40  # resamples of trials behind an importance


def t_interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Return the mean of paired differences and its two-sided t interval at 1 - `level`."""
    values = np.asarray(values, float)
    half = stats.t.ppf(1 - level / 2, len(values) - 1) * stats.sem(values)
    return values.mean(), values.mean() - half, values.mean() + half


def read_trials(data: str) -> tuple[dict, pd.DataFrame]:
    """Return the search's headline, tables and reasons, and a row a trial with its values.

    `halfway_db` is the validation PSNR at half of the volumes, which the pruned reached, too.
    """
    rows, about = read_rows(trials.LEDGER, trials.CODE, data)
    table = pd.DataFrame()
    if len(rows):
        rows = rows[rows["cohort"] == rows["cohort"].iloc[-1]].sort_values("trial", ignore_index=1)
        half = [dict(row["curve"]).get(row["settings"]["volumes"] // 2)
                for row in rows.to_dict("records")]  # fmt: skip
        table = rows.join(pd.DataFrame(rows["values"].tolist())).assign(halfway_db=half)
    names = ("trials", "best_psnr_db", "default_psnr_db")
    whole = table[table["state"] == "complete"] if len(table) else table
    if about["data"] != data or len(whole) < 2 or whole["trial"].iloc[0]:
        reason = f"the ledger has no search on {data} yet"
        found = {"headline": dict.fromkeys(names), "reasons": dict.fromkeys(names, reason)}
        return found | {"tables": {"search_ledger": about}}, table
    default, tried = whole.iloc[0], whole.iloc[1:]
    best = tried.loc[tried["psnr_db"].idxmax()]
    gain = t_interval(np.subtract(best["each_db"], default["each_db"]))
    numbers = len(table) - 1, best["psnr_db"], default["psnr_db"]
    about |= {
        "volumes": default["settings"]["volumes"], "best": best["values"],
        "default": default["values"], "people": len(best["each_db"]),
        "gain_db": dict(zip(("mean", "low", "high"), gain)), "pruned": int(
            (table["state"] == "pruned").sum()), "cpu_seconds": table["cpu_seconds"].sum(),
    }  # fmt: skip
    return {"headline": dict(zip(names, numbers)), "reasons": {},
            "tables": {"search_ledger": about}}, table  # fmt: skip


def importances(table: pd.DataFrame) -> pd.DataFrame:
    """Return each setting's share of what settings explain of `halfway_db` (fANOVA, Hutter 2014).

    Shares sum to 1. Median and 90 % range over resampled trials; beside it the same with the scores
    shuffled, which is what chance gives.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = trials.space(vae_settings(table["settings"].iloc[0]["vae"]))
    known, rng, rows = table.dropna(subset="halfway_db").reset_index(), np.random.default_rng(0), []
    for draw in range(DRAWS):
        some = known.iloc[rng.integers(len(known), size=len(known))]
        scores = some["halfway_db"].to_numpy()
        for series, values in (("trials", scores), ("scores shuffled", rng.permutation(scores))):
            study = optuna.create_study(direction="maximize")
            study.add_trials([
                optuna.trial.create_trial(params=params, distributions=space, value=value)
                for params, value in zip(some["values"], values)
            ])  # fmt: skip
            judge = optuna.importance.FanovaImportanceEvaluator(seed=draw)
            shares = optuna.importance.get_param_importances(study, evaluator=judge)
            rows += [{"setting": k, "series": series, "share": v} for k, v in shares.items()]
    parts = pd.DataFrame(rows).groupby(["setting", "series"])["share"].quantile([0.05, 0.5, 0.95])
    named = {0.05: "share_low", 0.5: "share", 0.95: "share_high"}
    shares = parts.unstack().rename(columns=named).reset_index()
    return shares.sort_values(["series", "share"], ascending=False, ignore_index=True)


def tell_search(found: dict, shares: pd.DataFrame) -> list[str]:
    """Put the search, on validation people, and what mattered into sentences."""
    headline, about = found["headline"], found["tables"]["search_ledger"]
    gain = about["gain_db"]
    verdict = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not told from"
    trial, chance = (shares[shares["series"] == name].set_index("setting")
                     for name in ("trials", "scores shuffled"))  # fmt: skip
    sure = [name for name in trial.index
            if trial.loc[name, "share_low"] > chance.loc[name, "share_high"]]  # fmt: skip
    first = trial["share"].idxmax()

    def spell(table: pd.DataFrame) -> str:
        share, low, high = (100 * table.loc[first, ["share", "share_low", "share_high"]]).round()
        return f"{share:.0f} % ({low:.0f} to {high:.0f} %)"

    return [
        f"{headline['trials']} trials of {about['volumes']} volumes beside the defaults, "
        f"{about['pruned']} of them pruned, {about['cpu_seconds'] / 60:.0f} CPU-minutes.",
        f"The best has {headline['best_psnr_db']:.2f} dB on validation people, {verdict} the "
        f"defaults' {headline['default_psnr_db']:.2f} dB: {gain['mean']:+.2f} dB "
        f"({gain['low']:+.2f} to {gain['high']:+.2f}, paired over {about['people']} people). "
        "It was chosen by that very score, which flatters it.",
        f"Half way, {first} has the largest share of what settings explain, {spell(trial)}; "
        f"{spell(chance)} with the scores shuffled.",
        (f"Beyond chance: {' and '.join(sure)}." if sure else
         "No setting's share is wholly beyond chance in so few trials."),
    ]  # fmt: skip


def _rows(data: str) -> pd.DataFrame:
    """Return a cohort's rows of the grids' and the ablations' ledgers, each with its grid."""
    named = {name: grid for grid, names in ABLATED.items() for name in names}
    parts = []
    for ledger, code in ((grids.LEDGER, grids.CODE), (ablations.LEDGER, ablations.CODE)):
        rows, about = read_rows(ledger, code, data)
        if len(rows) and about["data"] == data:
            if "grid" not in rows:
                rows = rows.assign(grid=rows["variant"].map(named), change=None)
            parts.append(rows.assign(ledger=ledger))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def holm(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return p corrected for all comparisons, and the level at which each is tested (Holm 1979).

    From the first that fails on, the level stays: an interval at 1 - level leaves out 0 where, and
    only where, the corrected p is below `LEVEL`.
    """
    order, rank = np.argsort(p), np.arange(len(p))
    corrected, levels = np.empty(len(p)), np.empty(len(p))
    raised = np.maximum.accumulate(np.minimum(1, np.sort(p) * (len(p) - rank)))
    first = int(np.argmax(raised >= LEVEL)) if (raised >= LEVEL).any() else len(p)
    corrected[order], levels[order] = raised, LEVEL / (len(p) - np.minimum(rank, first))
    return corrected, levels


def compare_grids(data: str) -> pd.DataFrame:
    """Return a row a grid, variant and measure: the paired difference to `lean` of one cohort.

    Pairs share people and seed. Runs are seeds; where a cohort has folds, they are folds, with
    seeds averaged first, since people differ more than seeds do. `low` and `high` bound 95 %,
    `holm_low` and `holm_high` hold for all comparisons of the cohort together.
    """
    rows, measures = _rows(data), [*COMPARED, "cpu_seconds"]
    found = []
    if len(rows):
        base = rows[rows["variant"] == "lean"].set_index(["ledger", *KEYS])[measures]
        rest = rows[rows["variant"] != "lean"]
        rest = rest.join(base.add_suffix("_lean"), on=["ledger", *KEYS], how="inner")
        run = "fold" if rest["fold"].nunique() > 1 else "seed"
        for (grid, variant), some in rest.groupby(["grid", "variant"], sort=False):
            ratio = some["cpu_seconds"].sum() / some["cpu_seconds_lean"].sum()
            for name in COMPARED:
                gaps = (some[name] - some[f"{name}_lean"]).groupby(some[run]).mean().dropna()
                if len(gaps) < RUNS:
                    continue
                mean, low, high = t_interval(gaps)
                found.append({
                    "data": data, "grid": grid, "variant": variant, "measure": name,
                    "difference": mean, "low": low, "high": high, "runs": len(gaps), "per": run,
                    "sem": stats.sem(gaps), "p": stats.ttest_1samp(gaps, 0).pvalue,
                    "cpu_ratio": ratio, "stale": int(some["stale"].sum()),
                })  # fmt: skip
    table = pd.DataFrame(found)
    if len(table):
        table["p_holm"], levels = holm(table["p"].to_numpy())
        half = stats.t.ppf(1 - levels / 2, table["runs"] - 1) * table.pop("sem")
        table["holm_low"], table["holm_high"] = (table["difference"] - half,
                                                 table["difference"] + half)  # fmt: skip
    return table


def read_grids(data: str) -> dict:
    """Return headline, tables, reasons of the grids of every cohort; and the counts of `data`."""
    known = record.ledger_rows(ablations.LEDGER, preset=PRESET)
    known += record.ledger_rows(grids.LEDGER, preset=PRESET)
    cohorts = dict.fromkeys(["phantom", *(row["data"] for row in known)])
    tables = [table for table in map(compare_grids, cohorts) if len(table)]
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    count = table.loc[table["data"] == data, "grid"].nunique() if len(table) else 0
    reasons = {} if count else {"ablations": f"the ledger has no grid of {data} yet"}
    return {"headline": {"ablations": count or None}, "reasons": reasons,
            "tables": {"grids": table.to_dict("records")}}  # fmt: skip


def tell_beside(data: str) -> list[str]:
    """Say how far `lean` of the grids is from the ablations', and what halving alone costs."""
    rows, said = _rows(data), []
    if not len(rows):
        return said
    lean = rows[rows["variant"] == "lean"]
    both = lean.pivot_table("psnr_db", ["fold", "seed"], "ledger").dropna()
    if both.shape[1] == 2 and len(both):
        gap = both[grids.LEDGER].sub(both[ablations.LEDGER]).abs().max()
        said.append(f"`lean` of these grids is within {gap:.3f} dB of the ablations' of the same "
                    f"seed ({len(both)} seeds).")  # fmt: skip
    halved = rows[rows["variant"] == "half, lossless"]
    if len(halved) and len(lean):
        alone, own = (part[[*COMPARED]].mean() for part in (halved, lean))
        said.append(
            f"Halving and enlarging a volume, with nothing trained, gives {alone['psnr_db']:.2f} "
            f"dB; regions err by {alone['region_error_pct']:.2f} %, and "
            f"{100 * alone['effect_kept']:.0f} % of the effect are kept (`lean`: "
            f"{own['psnr_db']:.2f} dB, {own['region_error_pct']:.2f} %, "
            f"{100 * own['effect_kept']:.0f} %)."
        )
    return said


def tell_grids(table: pd.DataFrame) -> list[str]:
    """Put into a sentence a grid what is shown against `lean` after correction, and what is not."""
    said = []
    for (data, grid), part in table.groupby(["data", "grid"], sort=False):
        words, silent = [], []
        for variant, some in part.groupby("variant", sort=False):
            shown = []
            for row in some[some["p_holm"] < LEVEL].to_dict("records"):
                label, digits, sign = COMPARED[row["measure"]]
                verdict = "better" if sign * row["difference"] > 0 else "worse"
                low, high = (f"{row[f'holm_{side}']:+.{digits}f}" for side in ("low", "high"))
                shown.append(f"{label} {verdict}, {row['difference']:+.{digits}f} "
                             f"({low} to {high})")  # fmt: skip
            if shown:
                words.append(f"`{variant}`: {'; '.join(shown)}")
            else:
                row = some.set_index("measure").loc["psnr_db"]
                silent.append(f"`{variant}` ({row['difference']:+.2f} dB, {row['low']:+.2f} to "
                              f"{row['high']:+.2f} uncorrected)")  # fmt: skip
        if silent:
            words.append(f"not told from `lean`: {', '.join(silent)}")
        said.append(f"On {data}, {grid}. " + ". ".join(words) + ".")
    return said
