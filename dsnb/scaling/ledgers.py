"""What the ledgers of pages 05 and 06 say, as tables and headline values."""

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dsnb import record
from dsnb.anomaly import metrics
from dsnb.anomaly.people import CANDIDATES, PRIMARY
from dsnb.config import Maps
from dsnb.scaling.tables import PRESET, read_rows
from dsnb.search import (
    coverage,
    deep_norms,
    hard,
    latent_kinds,
    planted,
    power,
    severity,
    sharpness,
    shift,
    stages,
    subtypes,
    synthesis,
)


def _unfold(rows: pd.DataFrame, inside: str, **named: str) -> list[dict]:
    """Return a row for each one `inside` a ledger's row, with columns of it, new name = old."""
    return [
        {new: row[old] for new, old in named.items()} | one
        for row in rows.to_dict("records") for one in row[inside]
    ]  # fmt: skip


def read_generators(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a generator: error, attack on its weights, nearness of samples; and about it."""
    rows, about = read_rows(synthesis.LEDGER, synthesis.CODE, data)
    if not len(rows):
        return pd.DataFrame(), about
    numbers = pd.DataFrame(rows["numbers"].tolist(), index=rows.index)
    return pd.concat([rows[["variant"]], numbers], axis=1).reset_index(drop=True), about


def read_sharpness(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a VAE and way to finish what it draws, of `data`; and about the rows."""
    rows, about = read_rows(sharpness.LEDGER, sharpness.CODE, data)
    return pd.DataFrame(_unfold(rows, "ways", vae="variant")), about


def read_norms(data: str) -> tuple[pd.DataFrame, dict]:
    """Return lift and gain of every norm, those tried beside the page's too, and about the row."""
    rows, about = read_rows(deep_norms.LEDGER, deep_norms.CODE, data)
    return pd.DataFrame(rows["norms"].iloc[-1] if len(rows) else []), about


def read_severity(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a field, severity and norm with lift, gain and intervals, and about the rows."""
    rows, about = read_rows(severity.LEDGER, severity.CODE, data)
    return pd.DataFrame(_unfold(rows, "norms", field="part", severity="change")), about


def severity_curves(table: pd.DataFrame, field: str, value: str) -> dict[str, pd.DataFrame]:
    """Return {norm: severity, `value`, low, high} of one field of `read_severity`."""
    if not len(table):
        return {}
    some = table[table["field"] == field]
    some = some.rename(columns={f"{value}_low": "low", f"{value}_high": "high"})
    curves = some.groupby("norm", sort=False)
    return {name: curve.sort_values("severity") for name, curve in curves}


def read_shift(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a fault and number of known euploids: flagged people, coverage; and about it."""
    rows, about = read_rows(shift.LEDGER, shift.CODE, data)
    return pd.DataFrame(_unfold(rows, "sites", fault="part", norm="norm")), about


def _real(ledger: str, code: tuple[str, ...]) -> tuple[pd.DataFrame, dict]:
    """Return the rows of the real cohort that was added last, and how many are stale."""
    known = record.ledger_rows(ledger, preset=PRESET)
    if not known:
        return pd.DataFrame(), {"data": "no real cohort", "rows": 0, "stale": 0}
    return read_rows(ledger, code, known[-1]["data"])


def read_planted(settings: Maps) -> tuple[list[dict], list[dict], dict]:
    """Return lift and gain of every norm on planted real scans; paired; and about the rows.

    The second table holds the ratio of the primary norm's lift and gain to each plain rival's over
    the same people; None where the rival is not shown to be above 0.
    """
    rows, about = _real(planted.LEDGER, planted.CODE)
    if not len(rows):
        return [], [], about

    def gather(name: str, value: str) -> np.ndarray:
        return np.concatenate([each[name][value] for each in rows["each"]])

    pairs = []
    for rival in (c.name for c in CANDIDATES if not c.deep and c.name in rows["each"].iloc[0]):
        row = {"rival": rival}
        for value in ("lift", "gain"):
            own, other = gather(PRIMARY, value), gather(rival, value)
            interval = metrics.ratio_interval(own, other, settings)
            row |= {f"{value}_ratio": own.mean() / other.mean() if interval else None,
                    f"{value}_interval": interval}  # fmt: skip
        pairs.append(row)
    return planted.summarise(rows, settings), pairs, about


def read_power() -> tuple[pd.DataFrame, dict]:
    """Return a row a kind of study (euploids, ds, severity, d, power), and about the rows."""
    rows, about = _real(power.LEDGER, power.CODE)
    columns = ["severity", "d", "power", "low", "high", "false", "redraws", "pool"]
    if not len(rows):
        return rows, about
    people = pd.DataFrame(rows["part"].tolist())
    return people.join(rows.rename(columns={"change": "severity"}).reset_index()[columns]), about


def read_hard(data: str) -> dict:
    """Return headline values and tables of page 06's hard arm.

    The severity is that at which estimated volumes come closest to 0.80 balanced accuracy with the
    people of the choosing seed; the values are those of the judging seed.
    """
    rows, about = read_rows(hard.LEDGER, hard.CODE, data)
    named = _unfold(rows, "features", use="part", severity="change")
    table = pd.DataFrame(named)
    names = ("bacc_ds_hard", "bacc_ds_hard_volumes", "bacc_ds_hard_undone")
    tables = {"hard": named, "hard_ledger": about}
    if about["data"] != data or {*hard.SEEDS} - {*table.get("use", ())}:
        reason = f"the ledger has no faint disease of {data} yet"
        return {"headline": dict.fromkeys(names), "tables": tables,
                "reasons": dict.fromkeys(names, reason)}  # fmt: skip
    severity = latent_kinds.faintest(table[table["use"] == "choose"])
    judged = table[(table["use"] == "judge") & (table["severity"] == severity)]
    judged = judged.set_index("features")
    latent, undone = judged.loc["latents"], judged.loc["undone"]
    headline = {
        "bacc_ds_hard": latent["bacc"], "bacc_ds_hard_undone": undone["bacc"],
        "bacc_ds_hard_volumes": judged.loc["estimated volumes", "bacc"], "hard_severity": severity,
        "hard_gain_ci": [latent["gain_low"], latent["gain_high"]],
        "hard_gain_undone_ci": [undone["gain_low"], undone["gain_high"]],
    }  # fmt: skip
    return {"headline": headline, "tables": tables, "reasons": {}}


def read_latents(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a question and kind of latent or network: means over seeds, and about the rows.

    `auc` has its range over seeds; the bounds of `gain` are means over seeds of intervals by
    person.
    """
    rows, about = read_rows(latent_kinds.LEDGER, latent_kinds.CODE, data)
    named = pd.DataFrame(_unfold(rows, "scores", seed="seed"))
    if not len(named):
        return named, about
    parts = named.groupby(["question", "features"], sort=False)
    table = parts[["auc", "bacc", "gain", "gain_low", "gain_high"]].mean()
    auc, seeds = parts["auc"], parts["seed"].nunique()
    table.insert(1, "least", auc.min())
    table.insert(2, "most", auc.max())
    return table.assign(seeds=seeds).reset_index(), about


def read_stages(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a number of further people and set of features, and about the rows."""
    rows, about = read_rows(stages.LEDGER, stages.CODE, data)
    return pd.DataFrame(_unfold(rows, "features")), about


def read_subtypes(data: str) -> dict:
    """Return the headline value, table and reason of page 06's cohorts with and without subtypes.

    The false discovery is the share of all cohorts without subtypes that are called structured.
    """
    rows, about = read_rows(subtypes.LEDGER, subtypes.CODE, data)
    table = _unfold(rows, "features", arm="part", strength="change")
    tables, name = {"subtypes": table, "subtypes_ledger": about}, "strata_false_discovery"
    if about["data"] != data or not table:
        reason = f"the ledger has no cohorts without subtypes of {data} yet"
        return {"headline": {name: None}, "tables": tables, "reasons": {name: reason}}
    shares = [row["called"] for row in table if not subtypes.ARMS[row["arm"]]]
    return {"headline": {name: float(np.mean(shares))}, "tables": tables, "reasons": {}}


def judge_coverage(covered: int, cohorts: int) -> dict:
    """Return how often intervals held, the exact interval of that share, and it in words."""
    low, high = binomtest(covered, cohorts).proportion_ci()
    share, words = covered / cohorts, "as claimed: 93 to 97 of 100"
    if not 0.93 <= share <= 0.97:
        words = "too rarely" if share < 0.95 else "too often"
        words = f"{words}, within chance" if low <= 0.95 <= high else words
    return {"covered": covered, "cohorts": cohorts, "low": low, "high": high, "verdict": words}


def read_coverage(data: str) -> tuple[pd.DataFrame, dict]:
    """Return a row a page and interval: in how many cohorts it held its truth; and about the rows.

    `all_cohorts` counts the mean truth of all cohorts, `below` truths under the interval. Where no
    truth is given, it is the mean of the values.
    """
    rows, about = read_rows(coverage.LEDGER, coverage.CODE, data)
    found: dict = {}
    for one in rows["intervals"] if len(rows) else ():
        for name, values in one.items():
            found.setdefault(name, []).append(values)
    table = []
    for name, values in sorted(found.items()):
        low, value, high, truth = np.array(values, float).T
        truth = np.where(np.isnan(truth), value.mean(), truth)
        page, interval = name.split(" ", 1)
        held = (low <= truth) & (truth <= high)
        everywhere = (low <= truth.mean()) & (truth.mean() <= high)
        table.append(
            {
                "page": page,
                "interval": interval,
                "truth": truth.mean(),
                "mean_value": value.mean(),
                **judge_coverage(int(held.sum()), len(held)),
                "below": int((truth < low).sum()),
                "all_cohorts": int(everywhere.sum()),
            }
        )
    return pd.DataFrame(table), about
