"""A Sphinx extension: a percent sign stays on the line of its number."""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

SPACE = re.compile(r"(?<=\d) (?=%)")
CODE = (nodes.literal, nodes.literal_block, nodes.raw)


class KeepPercentSigns(SphinxPostTransform):
    """Puts a no-break space between a number and the percent sign after it, except in code."""

    default_priority = 700

    def run(self, **kwargs):
        for text in [*self.document.findall(nodes.Text)]:
            if SPACE.search(text) and not isinstance(text.parent, CODE):
                text.parent.replace(text, nodes.Text(SPACE.sub("\N{NO-BREAK SPACE}", text)))


def setup(app):
    """Registers the transform."""
    app.add_post_transform(KeepPercentSigns)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
