"""A Sphinx extension: the HTML tables that cells show get a number, and a name to refer to.

Sphinx numbers tables that are written as markup, and MyST-NB numbers a cell's pictures.  This numbers the
tables of cells too, in the same sequence.  A cell's metadata names its table, as
`{"table": "tab-04-records"}`, so that the text can say `` {numref}`tab-04-records` ``.
"""

import html
import re

from docutils import nodes
from sphinx.transforms import SphinxTransform

CAPTION = re.compile(r"<caption>(.*?)</caption>", re.DOTALL)


class numbered_table(nodes.General, nodes.Element):
    """A table in HTML; `title` holds the text of its caption."""


class NumberTables(SphinxTransform):
    """Replaces each HTML table with a caption, in a cell's output, by a `numbered_table`."""

    default_priority = 400  # before Sphinx collects names and numbers

    def apply(self, **kwargs):
        for cell in self.document.findall(_is_cell):
            tables = [*cell.findall(_is_table)]
            for number, raw in enumerate(tables):
                name = cell["cell_metadata"].get("table") if number == 0 else None
                raw.replace_self(self._number(raw, name))

    def _number(self, raw, name):
        """The node of a table; without a name it still needs an id, to be numbered."""
        title = html.unescape(CAPTION.search(raw.astext())[1])
        table = numbered_table(table=raw.astext(), title=title, classes=raw["classes"])
        if name is None:
            self.document.set_id(table)
        else:
            table["names"].append(name)
            self.document.note_explicit_target(table)
        return table


def _is_cell(node):
    return isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"


def _is_table(node):
    return isinstance(node, nodes.raw) and node.get("format") == "html" and CAPTION.search(node.astext())


def _write(translator, node):
    """The table with its number and a link to itself in the caption."""
    before, title, after = CAPTION.split(node["table"], maxsplit=1)
    translator.body.append(translator.starttag(node, "div") + before + "<caption>")
    translator.add_fignumber(node)
    translator.body.append(f'<span class="caption-text">{title}</span>')
    translator.add_permalink_ref(node, "Link to this table")
    translator.body.append("</caption>" + after + "</div>")
    raise nodes.SkipNode


def setup(app):
    """Register the node, its numbering and the transform."""
    app.add_enumerable_node(numbered_table, "table", lambda node: node["title"], html=(_write, None))
    app.add_transform(NumberTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
