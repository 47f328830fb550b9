"""The ratios as a picture: an SVG of bars on a logarithmic scale, to the right of 1 for more than Apache."""

from __future__ import annotations

import math
from html import escape

from benchmark.report import Comparison, Report

MEASURES = (
    ("messages_per_second", "messages/s: right is better", "#2b6cb0"),
    ("p99_us", "p99: left is better", "#dd8a1e"),
    ("cpu_us_per_message", "server CPU a message: left", "#3f8f4f"),
    ("resident_mb", "resident memory: left", "#8a4f9e"),
    ("ready_seconds", "time to ready: left", "#7a7a7a"),
)
MEMORY_AND_START = ("resident_mb", "ready_seconds")
"""Drawn only for the row that measures nothing else."""
LOWEST, HIGHEST = 1 / 32, 8.0
TICKS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)

WIDTH, LEFT, RIGHT, TOP = 900, 270, 40, 96
BAR, GAP, FOOT = 13, 14, 30


def picture(report: Report) -> str:
    """The SVG of all comparisons that have a ratio."""
    drawn = [(comparison, bars) for comparison in report.comparisons if (bars := _bars(comparison))]
    height = TOP + sum(len(bars) * BAR + GAP for _, bars in drawn) + FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12" fill="#222">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="16" y="26" font-size="17" font-weight="bold">Ratios: the first server over the second</text>',
        f'<text x="16" y="44">{escape(report.machine)}</text>',
        *_legend(),
        *_scale(height),
    ]
    y = TOP
    for comparison, bars in drawn:
        parts.append(
            f'<text x="{LEFT - 10}" y="{y + 10}" text-anchor="end">{escape(comparison.title)}</text>'
            f'<text x="{LEFT - 10}" y="{y + 23}" text-anchor="end" font-size="10" fill="#777">'
            f"{escape(' : '.join(comparison.runs))}</text>"
        )
        for ratio, color in bars:
            parts.append(_bar(ratio, color, y))
            y += BAR
        y += GAP
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bars(comparison: Comparison) -> list[tuple[float, str]]:
    """(ratio, color) of each measure that the comparison has; two lines of text need two bars at least."""
    alone = comparison.ratio("messages_per_second") is None
    return [
        (ratio, color)
        for figure, _, color in MEASURES
        if (figure in MEMORY_AND_START) == alone and (ratio := comparison.ratio(figure)) is not None
    ]


def _x(ratio: float) -> float:
    inside = min(max(ratio, LOWEST), HIGHEST)
    share = math.log(inside / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _bar(ratio: float, color: str, y: int) -> str:
    begin, end = sorted((_x(1), _x(ratio)))
    anchor, at = ("start", end + 4) if ratio >= 1 else ("end", begin - 4)
    return (
        f'<rect x="{begin:.1f}" y="{y}" width="{max(end - begin, 1):.1f}" height="{BAR - 2}" fill="{color}"/>'
        f'<text x="{at:.1f}" y="{y + 10}" text-anchor="{anchor}" font-size="10">{ratio:.2f}</text>'
    )


def _legend() -> list[str]:
    parts, x = [], 16
    for _, name, color in MEASURES:
        parts.append(f'<rect x="{x}" y="56" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="65" font-size="10">{name}</text>')
        x += 34 + round(5.6 * len(name))
    return parts


def _scale(height: int) -> list[str]:
    parts = []
    for tick in TICKS:
        x, strong = _x(tick), tick == 1
        label = f"{tick:g}" if tick >= 1 else f"1/{round(1 / tick)}"
        parts.append(
            f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{height - FOOT}" '
            f'stroke="{"#222" if strong else "#ddd"}"/>'
            f'<text x="{x:.1f}" y="{height - FOOT + 16}" text-anchor="middle" font-size="10">{label}</text>'
        )
    return parts
