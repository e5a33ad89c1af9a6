"""Wording: how numbers are spelt in sentences, and which of three claims an interval bears."""

Said = tuple[str, str]  # a title, which is one claim, and a text with its numbers


def spell(value: object) -> str:
    """Spell a headline value for print: three digits, intervals in brackets, null as n/a."""
    if value is None:
        return "n/a"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "[" + ", ".join(spell(entry) for entry in value) + "]"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def pick(tables: dict, name: str, columns: str, **where: object) -> list:
    """Return columns of a table's first row that matches; LookupError where it or a value lacks."""
    rows = tables.get(name) or []
    for row in [rows] if isinstance(rows, dict) else rows:
        if all(row.get(key) == value for key, value in where.items()):
            values = [row.get(column) for column in columns.split()]
            if None not in values:
                return values
    lacking, of = columns.split()[0].replace("_", " "), ", ".join(map(str, where.values()))
    raise LookupError(f"that the table {name} has no {lacking} of {of or 'anybody'}")


def choose(interval: list, at: float, below: str, between: str, above: str) -> str:
    """Return the claim for an interval that lies below `at`, holds it, or lies above it."""
    low, high = interval
    return below if high < at else above if low > at else between


def within(value: float, low: float, high: float, sign: str = " (95 % interval ") -> str:
    """Spell a value with its 95 % interval."""
    return f"{spell(value)}{sign}{spell(low)} to {spell(high)})"


def pct(*shares: float) -> list[float]:
    """Return shares as per cent."""
    return [100.0 * share for share in shares]
