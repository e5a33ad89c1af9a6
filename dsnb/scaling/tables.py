"""The ledger as tables: speed curves, what they say in numbers, ablations, and calculated costs.

A row made by other code than the present stays in its table and is counted as stale.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from dsnb import record
from dsnb.scaling import cost, speed
from dsnb.search import ablations

PRESET = "small"  # whose rows a page shows, whatever its own
AT_S = 100  # CPU-seconds at which networks are compared
TO_DB = 20.0  # PSNR whose time of arrival is compared
MEASURES = {
    "psnr_db": "PSNR (dB)", "ssim": "SSIM", "region_error_pct": "region error (%)",
    "region_bias_pct": "region bias (%)", "effect_kept": "effect kept",
    "active_share": "active share", "parameters": "parameters", "gigaflop": "GFLOP a volume",
    "cpu_seconds": "CPU-seconds", "volumes": "volumes seen",
}  # fmt: skip
COMPARED = (
    ("long", "pca"), ("lean", "long"), ("eighth", "lean"), ("pooled", "lean"), ("flat", "lean"),
    ("morph", "lean"), ("sharp", "lean"), ("monai", "lean"),
)  # fmt: skip

WATTS_A_CORE = 10.0  # of a server under load, with its share of all else; our own assumption


def read_rows(ledger: str, code: tuple[str, ...], data: str) -> tuple[pd.DataFrame, dict]:
    """Return a cohort's rows at `small`, the phantom's where it has none, and how many are stale.

    Of a run that was repeated, the last row counts.
    """
    shown = data if record.ledger_rows(ledger, data=data, preset=PRESET) else "phantom"
    rows = pd.DataFrame(record.ledger_rows(ledger, data=shown, preset=PRESET))
    about = {"data": shown, "rows": len(rows), "stale": 0}
    if len(rows):
        known = [k for k in ("entrant", "part", "variant", "fold", "change", "seed") if k in rows]
        rows = rows[~rows[known].astype(str).duplicated(keep="last")]
        rows = rows.assign(stale=rows.apply(record.is_stale, axis=1, code=code))
        about |= {"rows": len(rows), "stale": int(rows["stale"].sum())}
    return rows, about


def speed_runs(rows: pd.DataFrame) -> dict[str, dict[int, tuple[np.ndarray, np.ndarray]]]:
    """Return the races {entrant: {seed: (CPU-seconds, test PSNR in dB)}}."""
    runs: dict = {}
    for row in rows.to_dict("records"):
        if row["part"] == "race" and isinstance(row.get("curve"), list):
            points = np.array([(point["cpu_s"], point["test_db"]) for point in row["curve"]])
            runs.setdefault(row["entrant"], {})[row["seed"]] = tuple(points.T)
    return runs


def db_at(run: tuple[np.ndarray, np.ndarray], seconds: float) -> float:
    """Return a run's PSNR (dB) after some CPU-seconds, linear between marks; NaN outside."""
    return float(np.interp(seconds, *run, left=np.nan, right=np.nan))


def seconds_to(run: tuple[np.ndarray, np.ndarray], wanted_db: float) -> tuple[float, bool]:
    """Return the CPU-seconds until a PSNR, linear between best marks, and whether it was reached.

    Where it was not, the seconds are those of the whole run.
    """
    seconds, db = run
    best = np.maximum.accumulate(db)
    return float(np.interp(wanted_db, best, seconds)), bool(best[-1] >= wanted_db)


def speed_curves(runs: dict) -> pd.DataFrame:
    """Return mean and range over seeds of each entrant at each mark that all its seeds passed."""
    table = pd.DataFrame(
        [(name, mark, db_at(run, mark))
         for name, seeds in runs.items() for mark in speed.MARKS for run in seeds.values()],
        columns=["entrant", "cpu_s", "db"],
    ).dropna()  # fmt: skip
    table = table.groupby(["entrant", "cpu_s"], sort=False)["db"]
    table = table.agg(mean="mean", low="min", high="max", runs="size").reset_index()
    return table[table["runs"] == table["entrant"].map(lambda name: len(runs[name]))]


def _gap_db(one: tuple, other: tuple) -> tuple[float, bool]:
    return db_at(one, AT_S) - db_at(other, AT_S), True


def _time_ratio(lean: tuple, shrunk: tuple) -> tuple[float, bool]:
    (mine, arrived), (theirs, there) = (seconds_to(run, TO_DB) for run in (lean, shrunk))
    return (theirs / mine if arrived else np.nan), there


GAINS: dict[str, tuple[str, Callable]] = {
    "gain_db_over_monai": ("monai_stock", _gap_db),
    "gain_db_over_monai_shrunk": ("monai_shrunk", _gap_db),
    "time_ratio_to_20db": ("monai_shrunk", _time_ratio),
}


def read_speed(data: str) -> dict:
    """Return headline values and tables of the speed ledger for a cohort.

    A value is the mean over seeds; null, with its reason, where the ledger lacks the cohort's runs.
    """
    rows, about = read_rows(speed.LEDGER, speed.CODE, data)
    runs = speed_runs(rows) if len(rows) else {}
    headline, gains, reasons = {}, [], {}
    for name, (rival, compare) in GAINS.items():
        mine, theirs = runs.get("lean", {}), runs.get(rival, {})
        found = [compare(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
        values = [value for value, _ in found if np.isfinite(value)]
        if about["data"] != data:
            reasons[name] = f"the ledger has no run of {data}; the page shows the phantom's"
        elif not found:
            reasons[name] = f"the ledger has no seed of both lean and {rival} yet"
        elif len(values) < len(found):
            reasons[name] = f"a run of lean or {rival} ended before what is compared"
        headline[name] = None if name in reasons else float(np.mean(values))
        if name == "time_ratio_to_20db" and headline[name]:
            headline["time_ratio_is_lower_bound"] = not all(there for _, there in found)
        if values:
            gains.append({
                "key": name, "against": rival, "mean": np.mean(values), "low": min(values),
                "high": max(values), "seeds": len(values),
                "bound": "" if all(there for _, there in found) else "at least",
            })  # fmt: skip
    linear = rows[rows["entrant"] == "pca"].to_dict("records") if len(rows) else []
    lines = {k: linear[-1][f"{k}_test_db"] for k in ("pca", "mean")} if linear else {}
    curves = speed_curves(runs)
    tables = {"speed_gains": gains, "speed_curves": curves.to_dict("records"),
              "speed_lines": lines, "speed_ledger": about, "reasons": reasons}  # fmt: skip
    return {"headline": headline, "tables": tables}


def ablation_table() -> pd.DataFrame:
    """Return each variant's measures: mean over seeds, folds averaged first, and SD over seeds.

    Rows are (data, variant), the phantom's first. A seed counts once it has every fold of its
    cohort: people differ more than seeds do. Memory is the calculated one of a volume at `small`:
    the peak of a process holds earlier runs, too.
    """
    known = record.ledger_rows(ablations.LEDGER, preset=PRESET)
    cohorts = sorted({row["data"] for row in known}, key=lambda name: (name != "phantom", name))
    if not cohorts:
        return pd.DataFrame()
    parts = [read_rows(ablations.LEDGER, ablations.CODE, cohort)[0] for cohort in cohorts]
    rows = pd.concat(parts, ignore_index=True)
    folds = rows.groupby(["data", "variant", "seed"])["fold"].transform("nunique")
    rows = rows[folds == rows.groupby("data")["fold"].transform("nunique")].reset_index(drop=True)
    bands = [
        {f"residual_db_to_{band['to']:g}": band["residual_db"] for band in bands}
        for bands in rows["spectrum"]
    ]
    rows = rows.join(pd.DataFrame(bands))
    budgets = rows["settings"].map(lambda one: one["training"]["volumes"], na_action="ignore")
    rows = rows.assign(volumes=budgets.astype(float), kl_nats_mean=rows["kl_nats"].map(np.mean))
    measures = [*MEASURES, *pd.DataFrame(bands), "kl_nats_mean"]
    keys = ["data", "variant"]
    seeds = rows.groupby([*keys, "seed"], sort=False)[measures].mean().groupby(keys, sort=False)
    table = seeds.mean().join(seeds.std().add_suffix("_sd"))
    groups = rows.groupby(keys, sort=False)
    counts = groups.agg(runs=("seed", "size"), seeds=("seed", "nunique"), stale=("stale", "sum"))
    costs = cost_table().query("preset == 'small' and precision == 'fp32' and not recompute")
    memory = costs.set_index("network")["peak_mib"].astype(float)
    table["calculated_mib"] = memory.reindex(table.index.get_level_values("variant")).to_numpy()
    return table.join(counts)


def tell_ablations(table: pd.DataFrame) -> list[str]:
    """Put what an ablation table (`ablation_table`) compares into sentences, cohort by cohort."""
    said = []
    for data, part in table.groupby(level="data", sort=False):
        part = part.droplevel("data")
        for name, other in COMPARED:
            if {name, other} <= set(part.index):
                one, base = part.loc[name], part.loc[other]
                said.append(
                    f"On {data}, `{name}` against `{other}`: {one['psnr_db']:.1f} against "
                    f"{base['psnr_db']:.1f} dB; regions err by {one['region_error_pct']:.2f} "
                    f"against {base['region_error_pct']:.2f} %; {100 * one['effect_kept']:.0f} "
                    f"against {100 * base['effect_kept']:.0f} % of the condition's effect survive; "
                    f"{one['cpu_seconds'] / base['cpu_seconds']:.1f} times the CPU-seconds."
                )
    return said


def cost_table() -> pd.DataFrame:
    """Return what was calculated: one row a preset, network, precision and `recompute`."""
    rows = [row for row in record.ledger_rows(cost.LEDGER) if row["part"] == "calculated"]
    known = ["preset", "network", "recompute", "precision"]
    sizes = ("weights", "gradients", "optimizer", "average", "activations", "peak")
    columns = [*known, "parameters", "gigaflop", *(f"{name}_mib" for name in sizes)]
    table = pd.DataFrame(rows, columns=[*columns, "code"])
    table["stale"] = [record.is_stale(row, cost.CODE) for row in rows]
    table["gpu_peak_mib"] = "not yet run"
    return table.drop(columns="code").drop_duplicates(known, keep="last").reset_index(drop=True)


def cost_check() -> pd.DataFrame:
    """Return the calculated rise of memory (MiB) in a step beside the measured one."""
    rows = [row for row in record.ledger_rows(cost.LEDGER) if row["part"] == "measured"]
    known = ["preset", "network", "recompute"]
    table = pd.DataFrame(rows, columns=[*known, "volumes", "rise_mib", "measured_mib"])
    table["ratio"] = table["rise_mib"] / table["measured_mib"]
    return table.drop_duplicates(known, keep="last").reset_index(drop=True)


def expense_table() -> pd.DataFrame:
    """Return core-hours and energy of every ledger; rows that did not count are told apart."""
    rows = []
    for path in sorted(record.ledger.LEDGERS.glob("*.jsonl")):
        known = record.ledger_rows(path.stem)
        spent = [row["cpu_seconds"] for row in known if "cpu_seconds" in row]
        hours = sum(spent) / 3600 if spent else np.nan
        rows.append({"ledger": path.stem, "rows": len(known), "counted": len(spent),
                     "core_hours": hours, "watt_hours": WATTS_A_CORE * hours})  # fmt: skip
    return pd.DataFrame(rows, columns=["ledger", "rows", "counted", "core_hours", "watt_hours"])
