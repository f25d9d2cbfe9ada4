"""The rooms that `vlscore` is built from, one concern each; imports point down, and none is of `vlscore`.

From the top: `evaluation`, `figures`, `widgets`, `datasets`; then `refinement`, `selection`, `boxes`; then
`models`; and on the ground `encoding`, `masks`, `images`, `prompts`, `scenes`, `options`, `files`, `errors`.
"""

__version__ = "0.1.0"
