"""The figures with a goal as a picture: a bar for each, as long as the goal is reached."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.figures import Figure

_ROW, _LEFT, _WIDE, _TOP = 22, 620, 330, 46
_MET, _MISSED, _INK, _PAPER = "#2a7f4f", "#b5542b", "#333333", "#ffffff"


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Write an SVG of all figures that have a goal. The bar's end is the goal; what passes it is cut off there."""
    shown = [(figure, _reached(figure)) for figure in figures if figure.goal is not None and figure.ratio is not None]
    height = _TOP + _ROW * len(shown) + 14
    goal = _LEFT + _WIDE
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {goal + 130} {height}" font-family="sans-serif"'
        f' font-size="12" role="img" aria-label="Each figure beside its goal">',
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>',
        f'<text x="10" y="20" fill="{_INK}" font-weight="bold">How much of its goal each figure reaches</text>',
        f'<text x="{goal}" y="36" fill="{_INK}" text-anchor="middle">goal</text>',
        f'<line x1="{goal}" y1="{_TOP - 6}" x2="{goal}" y2="{height - 10}" stroke="{_INK}" stroke-dasharray="3 3"/>',
    ]
    for number, (figure, share) in enumerate(shown):
        y = _TOP + _ROW * number
        colour = _MET if figure.met else _MISSED
        wide = max(_WIDE * min(share, 1.0), 1)
        told = f"{figure.ratio:.2f} of {figure.goal:.2f}"
        lines += [
            f'<text x="{_LEFT - 8}" y="{y + 12}" fill="{_INK}" text-anchor="end">{escape(figure.name)}</text>',
            f'<rect x="{_LEFT}" y="{y + 1}" width="{wide:.1f}" height="14" fill="{colour}"/>',
            f'<text x="{goal + 8}" y="{y + 12}" fill="{_INK}">{told}</text>',
        ]
    path.write_text("\n".join([*lines, "</svg>"]) + "\n")


def _reached(figure: Figure) -> float:
    ratio, goal = figure.ratio or 0.0, figure.goal or 0.0
    # A cost reaches its goal from above: met is the only thing that tells which way a ratio is good.
    if figure.met:
        return 1.0
    return ratio / goal if ratio < goal else goal / ratio
