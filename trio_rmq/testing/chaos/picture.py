"""Draws a run as one inline SVG: servers and faults as bars over time, rates and latencies as lines below them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from trio_rmq.testing.chaos.series import Series, Span

WIDTH, LEFT, RIGHT = 1060, 230, 16
LANE_HEIGHT, BAR_HEIGHT = 22, 14
CHART_HEIGHT, CHART_GAP, LEGEND_HEIGHT = 130, 30, 18
LATENCY_MS = (0.1, 10_000.0)
"""Bounds of the logarithmic scale."""
FAULT_WIDTH_MIN = 3.0
"""A fault without length is a mark this wide."""

Point = tuple[float, float | None]


def draw(series: Series) -> str:
    """The SVG element."""
    return _Drawing(series).draw()


class _Drawing:
    def __init__(self, series: Series) -> None:
        self.series = series
        self.parts: list[str] = []
        self.y = 8.0

    def x(self, seconds: float) -> float:
        """Where a time is."""
        return LEFT + (WIDTH - LEFT - RIGHT) * seconds / max(self.series.seconds, 0.001)

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def draw(self) -> str:
        series = self.series
        self._lanes(series.serving, "serving")
        self._lanes(series.faults, "fault")
        marks_at = self.y + 10
        self.y += 10
        self._chart(
            "messages a second",
            [
                ("acknowledged", "acknowledged", series.acknowledged),
                ("not acknowledged", "refused", series.not_acknowledged),
                ("consumed", "consumed", series.consumed),
            ],
            self._linear(max([1.0, *series.acknowledged, *series.not_acknowledged, *series.consumed])),
        )
        self._chart(
            "time to the acknowledgement, ms",
            [
                ("maximum", "maximum", series.latency_max_ms),
                ("p99", "p99", series.latency_p99_ms),
                ("median", "median", series.latency_p50_ms),
            ],
            self._logarithmic(),
        )
        bottom = self.y
        self._time_axis(bottom)
        for at, label in ((series.begin, "begin"), (series.healed, "faults over")):
            x = self.x(at)
            self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom:.1f}" class="mark"/>')
            self.text(x + 3, marks_at, label, "small")
        height = bottom + 28
        return (
            f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="time line of the run">'
            + "".join(self.parts)
            + "</svg>"
        )

    def _lanes(self, spans: Sequence[Span], kind: str) -> None:
        lanes = sorted({span.lane for span in spans})
        for lane in lanes:
            top = self.y + (LANE_HEIGHT - BAR_HEIGHT) / 2
            self.text(LEFT - 8, self.y + LANE_HEIGHT / 2 + 4, lane, "lane", "end")
            for span in spans:
                if span.lane == lane:
                    self._bar(span, top, kind)
            self.y += LANE_HEIGHT

    def _bar(self, span: Span, top: float, kind: str) -> None:
        x, end = self.x(span.begin), self.x(span.end)
        width = max(end - x, FAULT_WIDTH_MIN if kind == "fault" else 1.0)
        title = escape(f"{span.begin:.2f} s to {span.end:.2f} s: {span.detail or span.label}")
        self.parts.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR_HEIGHT}" class="{kind}">'
            f"<title>{title}</title></rect>"
        )

    # ---- charts --------------------------------------------------------------------------------------------------

    def _linear(self, most: float) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
        """A scale from 0 to a round number above `most`, and its marks."""
        step = 10 ** math.floor(math.log10(most))
        step = next(step * factor for factor in (0.2, 0.5, 1, 2, 5) if most / (step * factor) <= 5)
        top = math.ceil(most / step) * step
        marks = [(step * number, f"{step * number:g}") for number in range(int(top / step + 0.5) + 1)]
        return lambda value: value / top, marks

    def _logarithmic(self) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
        low, high = (math.log10(value) for value in LATENCY_MS)
        marks = [(10.0**power, f"{10.0**power:g}") for power in range(int(low), int(high) + 1)]
        return lambda value: (math.log10(min(max(value, LATENCY_MS[0]), LATENCY_MS[1])) - low) / (high - low), marks

    def _chart(
        self,
        title: str,
        lines: Sequence[tuple[str, str, Sequence[float | None]]],
        scale: tuple[Callable[[float], float], list[tuple[float, str]]],
    ) -> None:
        place, marks = scale
        self.y += CHART_GAP
        self.text(LEFT, self.y - 8, title, "title")
        x = LEFT + 8.0 * len(title)
        for label, kind, _ in lines:
            y = self.y - 12
            self.parts.append(f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="{y:.1f}" y2="{y:.1f}" class="line {kind}"/>')
            self.text(x + 23, self.y - 8, label, "small")
            x += 40 + 7 * len(label)
        base = self.y + CHART_HEIGHT
        for value, label in marks:
            y = base - CHART_HEIGHT * place(value)
            self.parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            self.text(LEFT - 8, y + 4, label, "small", "end")
        for _, kind, values in lines:
            points = [((number + 0.5) * self.series.bucket_seconds, value) for number, value in enumerate(values)]
            self._line(kind, points, base, place)
        self.y = base

    def _line(self, kind: str, points: Sequence[Point], base: float, place: Callable[[float], float]) -> None:
        """A line that is broken where there is no value; a single point is a dot."""
        piece: list[str] = []
        pieces: list[list[str]] = []
        for seconds, value in points:
            if value is None or seconds > self.series.seconds:
                pieces.append(piece)
                piece = []
            else:
                piece.append(f"{self.x(seconds):.1f},{base - CHART_HEIGHT * place(value):.1f}")
        for corners in [*pieces, piece]:
            if len(corners) == 1:
                x, y = corners[0].split(",")
                self.parts.append(f'<circle cx="{x}" cy="{y}" r="1.5" class="dot {kind}"/>')
            elif corners:
                self.parts.append(f'<polyline points="{" ".join(corners)}" class="line {kind}"/>')

    def _time_axis(self, y: float) -> None:
        seconds = self.series.seconds
        step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600) if seconds / step <= 14)
        for number in range(int(seconds / step) + 1):
            x = self.x(number * step)
            self.parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y:.1f}" y2="{y + 4:.1f}" class="axis"/>')
            self.text(x, y + 18, f"{number * step} s", "small", "middle")
