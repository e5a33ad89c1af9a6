"""What a piece of HTML does: what acts in it, and whether its tables tell of few people."""

import re
from html.parser import HTMLParser

from dsnb import record

TABLE = {"div", "style", "table", "thead", "tbody", "tr", "th", "td", "p"}  # as pandas draws one
LIVE = {"script", "iframe", "object", "embed", "form", "base", "link", "meta", "svg", "math"}


class Markup(HTMLParser):
    """Read HTML, or its `<article>` only: `acting` tags, `pictures`, and rows of `tables`.

    An output may hold what pandas draws and nilearn's viewer; our article whatever does not act.
    """

    def __init__(self, text: str, article: bool = False):
        super().__init__()
        self.acting, self.pictures, self.tables, self.cell = [], [], [], None
        self.article, self.inside = article, not article
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        """Note a tag that acts, a picture, or the start of a row or cell."""
        self.inside = self.inside or tag == "article"
        if not self.inside:
            return
        held = {name: value or "" for name, value in attrs}
        acts = [name for name in held if name.startswith("on")]
        acts += [v for v in held.values() if re.match(r"\s*(javascript|vbscript):", v, re.I)]
        viewer = tag == "iframe" and "brainsprite" in held.get("srcdoc", "") and "src" not in held
        if acts or (tag in LIVE if self.article else tag not in TABLE) and not viewer:
            self.acting.append(" ".join([tag, *acts]))
        if tag == "img" or viewer:
            self.pictures.append(held.get("src", "data:viewer"))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th") and self.tables and self.tables[-1]:
            self.cell = [tag, ""]
            self.tables[-1][-1].append(self.cell)

    def handle_endtag(self, tag: str) -> None:
        """Leave the article, or a cell."""
        self.inside = self.inside and not (self.article and tag == "article")
        self.cell = None if tag in ("td", "th") else self.cell

    def handle_data(self, data: str) -> None:
        """Add text to the cell."""
        if self.cell:
            self.cell[1] += data.strip()

    def tell_few(self) -> bool:
        """Tell whether a table has a small count or a high age, by its columns or its rows."""
        return any(map(_tell_few, self.tables))


def _tell_few(table: list[list]) -> bool:
    heads = [[text for _, text in row] for row in table if {tag for tag, _ in row} == {"th"}]
    for row in table:
        values = [_number(text) for tag, text in row if tag == "td"]
        labels = [[text] * len(values) for tag, text in row if tag == "th"]
        for names in [head[-len(values) :] for head in heads] + labels:
            if values and record.hide_row(list(zip(names, values))) != values[: len(names)]:
                return True
    return False


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
