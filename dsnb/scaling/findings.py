"""What the scaling page says in sentences, made of its tables; and titles of its figures."""

import pandas as pd

from dsnb.scaling.model import Links, held_out_error


def tell_steps(efficiency: pd.DataFrame, split: pd.DataFrame) -> tuple[str, tuple[str, str]]:
    """Return a sentence on what more processes bring, and two titles."""
    one, both = split.to_dict("records")
    share, name = 100 * both["sum_ms"] / both["step_ms"], both["arrangement"]
    said = (
        f"Summing gradients takes {both['sum_ms']:.1f} of {both['step_ms']:.1f} ms of a step of "
        f"{name}, loading {both['load_ms']:.1f} ms."
    )
    title, other = "Fewer cores than processes", f"The sum takes {share:.0f} % of a step of {name}"
    if share < 0:
        other = "What the sum takes is below the noise of the rounds"
    if len(efficiency):
        values = efficiency.set_index("kind")["efficiency"]
        title = f"Strong {values['strong']:.2f}, weak {values['weak']:.2f} of perfect"
        said += (
            f" {name} takes {one['step_ms'] / both['step_ms']:.2f} times the steps of 1x1 at the "
            f"same global batch, and {values['shared']:.2f} times those of one process that has "
            "all cores."
        )
    return said, (title, other)


def tell_batches(batches: pd.DataFrame, about: dict) -> tuple[str, str]:
    """Return a sentence on the runs to a target, and a title about batches that always arrived."""
    arrived = batches.groupby("batch")["reached"].mean()
    said = (
        f"{about['rows']} runs on {about['data']}, {about['stale']} by older code, to "
        f"{about['target_db']:.1f} dB. Seeds that arrived: "
        + ", ".join(f"{share:.0%} at batch {batch}" for batch, share in arrived.items()) + "."
    )  # fmt: skip
    mean = batches.groupby("batch")[["volumes", "steps"]].mean()[arrived == 1]
    ratio = mean.iloc[-1] / mean.iloc[0]
    title = (
        f"Batch {mean.index[-1]} against {mean.index[0]}: {ratio['volumes']:.1f} times the volumes "
        f"in {ratio['steps']:.1f} times the steps"
    )
    late = [str(batch) for batch in arrived.index[arrived < 1]]
    return said, title + (f"; too late at {', '.join(late)}" if late else "")


def tell_model(table: pd.DataFrame, fitted: Links) -> tuple[str, str]:
    """Return a sentence on the fit and its held-out errors, and a title."""
    held = table[table["held_out"]]
    errors = [held_out_error(table, name) for name in ("sum", "step")]
    said = (
        f"Fitted on {len(table) - len(held)} configurations: latency "
        f"{1e3 * fitted.latency_s:.2f} ms, {100 * fitted.share:.0f} % of a link's rate, "
        f"{fitted.core_bytes / 1e6:.0f} MB/s a core; bytes within a host cost "
        f"{fitted.near:.2f} of those between, crowding {fitted.crowding:.2f}. "
        f"Median error on {len(held)} held-out ones: "
        f"{errors[0]:.1f} % of the gradients' sum, {errors[1]:.1f} % of whole steps; "
        f"{table['stale'].sum()} by older code."
    )
    inside = 100 * (held["sum_pct"].abs() <= 15).mean()
    return said, f"{inside:.0f} % of held-out sums lie within 15 % (grey)"


def errors_by_ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median absolute errors (%) on held-out configurations by ranks and hosts."""
    held = table[table["held_out"]].groupby(["world", "hosts"])
    errors = held[["sum_pct", "step_pct"]].agg(lambda values: values.abs().median())
    return errors.assign(configurations=held.size())


def tell_projection(projected: pd.DataFrame, preset: str) -> tuple[str, str]:
    """Return titles on efficiency and speed of a preset at the most GPUs."""
    most = projected["gpus"].max()
    last = projected[(projected["gpus"] == most) & (projected["preset"] == preset)]
    said = ", ".join(
        f"{row['kind']} {row['efficiency']:.2f} ({row['efficiency_low']:.2f} to "
        f"{row['efficiency_high']:.2f})" for row in last.to_dict("records")
    )  # fmt: skip
    start, status = f"{most} GPUs, {preset}", last["status"].iloc[0]
    low, high = last["volumes_per_second_low"].min(), last["volumes_per_second_high"].max()
    speed = f"{start}: {low:.0f} to {high:.0f} volumes/s; {status}"
    return f"{start}: efficiency {said}; {status}", speed


def tell_expenses(spent: pd.DataFrame, projected: pd.DataFrame, watts: float) -> list[str]:
    """Return sentences on what the ledgers took and what a training on 4 GPUs would take."""
    hours, rows, counted = (spent[name].sum() for name in ("core_hours", "rows", "counted"))
    said = [
        f"{counted} of {rows} ledger rows counted {hours:.1f} core-hours, "
        f"{spent['watt_hours'].sum() / 1000:.2f} kWh at an assumed {watts:g} W a core."
    ]
    if len(projected):
        some = projected[(projected["gpus"] == 4) & (projected["kind"] == "strong")]
        said += [
            f"{row['preset']}, one training on 4 GPUs: {row['gpu_hours_low']:.2g} to "
            f"{row['gpu_hours_high']:.2g} GPU-hours; {row['status']}."
            for row in some.to_dict("records")
        ]
    return said


def tell_larger(steps: pd.DataFrame, loader: pd.DataFrame, projected: pd.DataFrame) -> list[str]:
    """Return sentences on the memory of larger grids, and on loading against what GPUs need."""
    said = []
    for preset, rows in steps[steps["volumes"] == 1].groupby("preset", sort=False):
        most = rows.loc[rows["measured_mib"].idxmax()]
        said.append(
            f"{preset}, one volume a step: {rows['network'].nunique()} networks, at most "
            f"{most['measured_mib']:.0f} MiB ({most['network']}), {rows['step_s'].max():.1f} s."
        )
    for preset, rows in loader.groupby("preset", sort=False):
        one = rows[rows["processes"] == 1].iloc[-1]
        said.append(
            f"{preset}: the memory map gives {one['memory_map_per_s']:.0f} volumes/s a process, "
            f"{one['ratio']:.1f} times what NIfTI does ({one['low']:.1f} to {one['high']:.1f})."
        )
        some = projected[projected["gpus"] == 4] if len(projected) else projected
        need = some[(some["preset"] == preset) & (some["kind"] == "weak")] if len(some) else some
        if len(need):
            row = need.iloc[0]
            said.append(
                f"4 GPUs would need {row['volumes_per_second_low']:.0f} to "
                f"{row['volumes_per_second_high']:.0f} a second, a process each ({row['status']})."
            )
    return said
