"""The rooms that `vlscore` is built from, one concern each; imports point down, and none is of `vlscore`.

From the top: `widgets`, `figures`, `evaluation`; `datasets`, `labelling`; then `boxes`, `store`,
`refinement`, `selection`; then `models`; and on the ground `encoding`, `scenes`, `masks`, `images`,
`photos`, `prompts`, `options`, `files`, `progress`, `errors`.
"""

__version__ = "0.1.0"
