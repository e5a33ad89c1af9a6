"""What a figure shows, in a sentence made of its own numbers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def spell(value: float) -> str:
    """Spell a number in three digits, or in whole thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def caption(figure: Figure, text: str) -> Figure:
    """Give a figure the sentence that stands below it; return the figure."""
    figure.set_label(text)
    return figure


def _within(row: pd.Series | dict, low: str, high: str) -> str:
    if pd.isna(row[low]) or pd.isna(row[high]):
        return ""
    return f" ({spell(row[low])} to {spell(row[high])})"


def tell_bars(
    table: pd.DataFrame, value: str, low: str, high: str, label: str, unit: str,
    reference: tuple[str, float] | None,
) -> str:  # fmt: skip
    """Tell the highest and the lowest row, and how many intervals leave the reference out."""
    known = table.dropna(subset=[value])
    if not len(known):
        return f"{unit}: nothing was computed."
    # By place: rows of two tables laid together may share a name.
    ends = known.iloc[known[value].argmax()], known.iloc[known[value].argmin()]
    spelt = [f"{row[label]}, {spell(row[value])}{_within(row, low, high)}" for row in ends]
    text = f"{unit}: highest in {spelt[0]}; lowest in {spelt[1]}."
    if reference:
        name, level = reference
        above, below = (known[low] > level).sum(), (known[high] < level).sum()
        text += f" Of {len(known)} intervals, {above} lie above the line ({name}), {below} below."
    return text


def tell_scatter(x: np.ndarray, y: np.ndarray, x_label: str, y_label: str) -> str:
    """Tell how two measures agree: correlation, slope and mean distance from the identity."""
    slope, r = np.polyfit(x, y, 1)[0], np.corrcoef(x, y)[0, 1]
    away = spell(np.abs(y - x).mean())
    return (f"{y_label} against {x_label}: correlation {r:.2f} and slope {slope:.2f} over {len(x)} "
            f"points, {away} from the identity on average.")  # fmt: skip


def tell_curves(curves: dict[str, pd.DataFrame], x: str, y: str, labels: Sequence[str]) -> str:
    """Tell every curve's value and interval at its first and last place."""
    told = []
    for name, table in curves.items():
        ends = (table.sort_values(x).iloc[row] for row in (0, -1))
        first, last = (f"{spell(row[y])}{_within(row, 'low', 'high')}" for row in ends)
        told.append(f"{name} from {first} to {last}")
    places = pd.concat(list(curves.values()))[x]
    reach = f"{spell(places.min())} to {spell(places.max())}"
    return f"{labels[1]}, over {labels[0]} {reach}: {'; '.join(told)}."


def tell_groups(groups: dict[str, np.ndarray], unit: str) -> str:
    """Tell each group's median and quartiles."""
    told = []
    for name, values in groups.items():
        low, middle, high = map(spell, np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75]))
        told.append(f"{name} {middle} ({low} to {high})")
    return f"{unit}, median and quartiles: {'; '.join(told)}."


def tell_ends(power: dict[str, np.ndarray], per_mm: np.ndarray) -> str:
    """Tell what share of the first curve's power the others hold at the finest frequency."""
    ends = {name: np.asarray(values)[-1] for name, values in power.items()}
    first, *others = ends
    shares = [f"{name} {spell(ends[name] / ends[first])}" for name in others]
    if not shares:
        return f"Power of {first} by frequency."
    at = f"{spell(np.asarray(per_mm)[-1])} cycles per mm"
    return f"Power as a multiple of that of {first}, at {at}: {'; '.join(shares)}."


def tell_extremes(table: pd.DataFrame, measures: dict[str, str]) -> str:
    """Tell each measure's lowest and highest row (the index)."""
    told = []
    for name, label in measures.items():
        values = table[name].dropna()
        ends = values.argmin(), values.argmax()
        low, high = (f"{spell(values.iloc[row])} ({values.index[row]})" for row in ends)
        told.append(f"{label} from {low} to {high}")
    return "; ".join(told) + "."


def tell_map(values: np.ndarray, affine: np.ndarray, brain: np.ndarray, least: float) -> str:
    """Tell where a map (X, Y, Z) is strongest (mm), and how much of the brain lies beyond."""
    shown = np.abs(values) > least
    if not shown.any():
        return "Nothing passes."
    peak = np.unravel_index(np.argmax(np.abs(values)), values.shape)
    x, y, z = affine[:3, :3] @ peak + affine[:3, 3]
    inside = max((brain > 0).sum(), 1)
    up, down = (100 * (shown & (np.sign(values) == sign)).sum() / inside for sign in (1, -1))
    where = f"Strongest {spell(values[peak])}, at ({x:.0f}, {y:.0f}, {z:.0f}) mm"
    return f"{where}; drawn above zero in {spell(up)} % of the brain, below in {spell(down)} %."


def tell_cases(maps: dict[str, Sequence[np.ndarray]], labels: Sequence[str]) -> str:
    """Tell each map's root mean square by row and, of two maps, how they correlate."""
    told = []
    for title, volumes in maps.items():
        sizes = [np.sqrt(np.mean(np.square(v, dtype=float)[v != 0])) for v in volumes]
        told.append(f"{title}: " + ", ".join(f"{n} {spell(s)}" for n, s in zip(labels, sizes)))
    text = f"Root mean square of {'; '.join(told)}." if told else ""
    if len(maps) == 2:
        pairs = list(zip(*maps.values()))
        rows = (np.ravel(one) != 0 for one, _ in pairs)
        r = [np.corrcoef(*(np.ravel(m)[inside] for m in pair))[0, 1]
             for pair, inside in zip(pairs, rows)]  # fmt: skip
        text += f" The two correlate by {', '.join(f'{one:.2f}' for one in r)}."
    return text
