"""Charts of a report as inline SVG: one axis of time for all, faults shaded behind everything.

What is drawn is bounded by buckets, clients and faults, never by the number of operations. Colours are classes, which
the page's style defines for light and dark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from chaos.history import Operation
from chaos.report_figures import OUTCOMES, Bucket, FaultFigures, Span, ended

WIDTH, LEFT, RIGHT = 1000, 110, 10
ROW, CHART = 14, 120
AXIS = 22
TICKS = 8

Point = tuple[float, float]


class Scale:
    """Seconds of the history's clock to x."""

    def __init__(self, over: Span) -> None:
        self.over = over

    def __call__(self, moment: float) -> float:
        share = (moment - self.over.start) / max(self.over.end - self.over.start, 1e-9)
        return LEFT + min(1.0, max(0.0, share)) * (WIDTH - LEFT - RIGHT)


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}" '
        f'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    )


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "") -> str:
    inner = f"<title>{escape(title)}</title>" if title else ""
    box = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{height:.1f}"'
    return f'<rect {box} class="{css}">{inner}</rect>'


def _text(x: float, y: float, text: str, css: str = "label") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}">{escape(text)}</text>'


def _shades(scale: Scale, faults: Sequence[FaultFigures], height: float) -> list[str]:
    """The faults as backgrounds; each says what it was when pointed at."""
    return [
        _rect(
            scale(fault.began), 0, scale(fault.ended) - scale(fault.began), height, "fault",
            f"{fault.name} {fault.detail}, {fault.ended - fault.began:.1f} s",
        )
        for fault in faults
    ]  # fmt: skip


def _axis(scale: Scale, y: float) -> list[str]:
    over = scale.over
    marks = [over.start + (over.end - over.start) * tick / TICKS for tick in range(TICKS + 1)]
    return [
        f'<line x1="{scale(mark):.1f}" y1="0" x2="{scale(mark):.1f}" y2="{y:.1f}" class="grid" />'
        + _text(scale(mark), y + 14, f"{mark - over.start:.0f} s", "tick")
        for mark in marks
    ]


def timeline(rows: dict[str, list[str | None]], over: Span, faults: Sequence[FaultFigures]) -> str:
    """A row for each client; colours say how its requests ended."""
    scale, height = Scale(over), ROW * max(1, len(rows))
    parts = [*_shades(scale, faults, height), *_axis(scale, height)]
    for position, (name, row) in enumerate(rows.items()):
        parts.append(_text(LEFT - 6, ROW * position + 11, name, "name"))
        parts += _row(row, ROW * position + 2, scale)
    return _svg(height + AXIS, "requests of each client through time", parts)


def _row(row: Sequence[str | None], y: float, scale: Scale) -> list[str]:
    """Neighbouring buckets of one outcome are one bar."""
    bars, position = [], 0
    for outcome, group in groupby(row):
        length = len(list(group))
        if outcome is not None:
            x = scale(scale.over.start + position * scale.over.width)
            end = scale(scale.over.start + (position + length) * scale.over.width)
            bars.append(_rect(x, y, end - x, ROW - 4, outcome))
        position += length
    return bars


def throughput(buckets: Sequence[Bucket], over: Span, faults: Sequence[FaultFigures]) -> str:
    """Requests that ended per second, by outcome, stacked."""
    scale = Scale(over)
    most = max((sum(bucket.counts.values()) for bucket in buckets), default=0) or 1
    parts = [*_shades(scale, faults, CHART), *_axis(scale, CHART)]
    for position, bucket in enumerate(buckets):
        x, y = scale(over.start + position * over.width), float(CHART)
        for outcome in OUTCOMES:
            height = bucket.counts[outcome] / most * (CHART - 10)
            if height:
                y -= height
                parts.append(_rect(x, y, scale(over.start + (position + 1) * over.width) - x, height, outcome))
    parts.append(_text(LEFT - 6, 12, f"{most / over.width:.0f} per s", "name"))
    return _svg(CHART + AXIS, "requests per second through time", parts)


def latency(buckets: Sequence[Bucket], over: Span, faults: Sequence[FaultFigures]) -> str:
    """Median and 99th percentile of acknowledged requests."""
    scale = Scale(over)
    most = max((bucket.quantile(0.99) or 0.0 for bucket in buckets), default=0.0) or 1e-3
    parts = [*_shades(scale, faults, CHART), *_axis(scale, CHART)]
    for css, part in (("p99", 0.99), ("p50", 0.5)):
        points = _points(buckets, scale, lambda bucket, part=part: bucket.quantile(part), most)  # type: ignore[misc]
        parts += [_line(run, css) for run in points]
    parts.append(_text(LEFT - 6, 12, f"{most * 1000:.0f} ms", "name"))
    return _svg(CHART + AXIS, "latency through time", parts)


def _points(
    buckets: Sequence[Bucket], scale: Scale, value: Callable[[Bucket], float | None], most: float
) -> list[list[Point]]:
    """Runs of points; where nothing was acknowledged the line breaks off."""
    runs: list[list[Point]] = [[]]
    for position, bucket in enumerate(buckets):
        found = value(bucket)
        if found is None:
            runs.append([])
        else:
            x = scale(scale.over.start + (position + 0.5) * scale.over.width)
            runs[-1].append((x, CHART - found / most * (CHART - 10)))
    return [run for run in runs if run]


def _line(points: Sequence[Point], css: str) -> str:
    if len(points) == 1:
        return f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="1.5" class="{css} dot" />'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" class="{css}" />'


def window(operations: Sequence[Operation]) -> str:
    """A few operations as bars on their own axis of time: those that show a violation."""
    start = min(operation.invoked for operation in operations)
    end = max(max(ended(operation), operation.invoked) for operation in operations)
    over = Span(start, max(end, start + 1e-3), 1)
    scale, height = Scale(over), ROW * len(operations)
    parts = []
    for position, operation in enumerate(operations):
        y = ROW * position
        x, width = scale(operation.invoked), scale(max(ended(operation), operation.invoked)) - scale(operation.invoked)
        parts.append(_text(LEFT - 6, y + 11, f"{operation.number} {operation.kind}", "name"))
        parts.append(_rect(x, y + 2, max(width, 2.0), ROW - 4, operation.outcome, operation.process))
    return _svg(height + 4, "the operations around it", parts)
