"""The caption below a figure of a page is also its description, for those who hear the page."""

from docutils import nodes
from sphinx.application import Sphinx


def describe(_: Sphinx, doctree: nodes.document, __: str) -> None:
    """Give each image that is followed by a paragraph `Figure. ...` its text as description."""
    for image in doctree.findall(nodes.image):
        below = image.next_node(descend=False, siblings=True)
        if isinstance(below, nodes.paragraph) and below.astext().startswith("Figure. "):
            image["alt"] = below.astext().removeprefix("Figure. ")


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the build of the book."""
    app.connect("doctree-resolved", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
