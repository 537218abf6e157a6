"""Intervals and curves as inline SVG. The style sheet of the page colours them, for light and dark mode."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

Numbers = Sequence[float | None]
Curve = tuple[Sequence[int], Numbers]
Limits = tuple[float, float]
"""The ends of an axis."""


def axis(values: Iterable[float], step: float = 10) -> Limits:
    """An axis that encloses all values and ends on multiples of `step`."""
    found = list(values) or [0.0]
    start, end = step * math.floor(min(found) / step), step * math.ceil(max(found) / step)
    return start, end if end > start else start + step


def ends(intervals: Iterable[Mapping[str, float]]) -> Iterator[float]:
    """The low and high end of every interval."""
    return (interval[end] for interval in intervals for end in ("low", "high"))


def centred(limits: Limits) -> Limits:
    """The axis, widened so that 0 is in its middle."""
    reach = max(abs(limits[0]), abs(limits[1]))
    return -reach, reach


def interval_bar(
    interval: Mapping[str, float], axis: Limits, kind: str = "", width: int = 170, seeds: Sequence[float] = ()
) -> Markup:
    """A dot at the mean and a line from low to high, on an axis, with a tick at 0; below, a small dot per seed."""
    start, end = axis

    def x(value: float) -> str:
        return f"{4 + (width - 8) * (min(max(value, start), end) - start) / (end - start):.1f}"

    zero = f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="1" y2="17"/>' if start < 0 < end else ""
    dots = "".join(f'<circle class="seed" cx="{x(value)}" cy="15.5" r="1.9"/>' for value in seeds)
    title = f"{interval['mean']:.1f}, 95 % interval {interval['low']:.1f} to {interval['high']:.1f}"
    if seeds:
        title += "; by seed " + ", ".join(f"{value:.1f}" for value in seeds)
    return Markup(
        f'<svg class="bar {escape(kind)}" width="{width}" height="18" viewBox="0 0 {width} 18" role="img"><title>{title}</title>'
        f'<line class="rail" x1="4" x2="{width - 4}" y1="9" y2="9"/>{zero}'
        f'<line class="span" x1="{x(interval["low"])}" x2="{x(interval["high"])}" y1="9" y2="9"/>'
        f'<circle class="dot" cx="{x(interval["mean"])}" cy="9" r="4"/>{dots}</svg>'
    )


def contrast_chart(row: Mapping[str, Any], limits: Limits, width: int = 340) -> Markup:
    """A difference with 0 in the middle: fresh seeds thick, with a dot each, the screen thin above, and the margin that is claimed.

    `row` has "screen" and "confirm" (intervals with "by_seed", or None), "expect", "margin" and "title". Only what is measured
    is drawn.
    """
    start, end = limits

    def x(value: float) -> float:
        return round(6 + (width - 12) * (min(max(value, start), end) - start) / (end - start), 1)

    parts = [f'<line class="rail" x1="6" x2="{width - 6}" y1="15" y2="15"/>']
    if row["expect"] == "level":
        reach = x(row["margin"]) - x(-row["margin"])
        parts.append(f'<rect class="margin" x="{x(-row["margin"])}" y="3" width="{reach:.1f}" height="24"/>')
    elif row["expect"] and row["margin"]:
        place = x(row["margin"] if row["expect"] == "more" else -row["margin"])
        parts.append(f'<line class="asked" x1="{place}" x2="{place}" y1="3" y2="27"/>')
    parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="2" y2="28"/>')
    told = []
    for phase, y in (("screen", 8 if row["confirm"] else 15), ("confirm", 17)):
        if found := row[phase]:
            parts.append(
                f'<line class="span {phase}" x1="{x(found["low"])}" x2="{x(found["high"])}" y1="{y}" y2="{y}"/>'
            )
            parts += [f'<circle class="seed" cx="{x(value)}" cy="{y + 8}" r="1.9"/>' for value in found["by_seed"]]
            parts.append(
                f'<circle class="dot {phase}" cx="{x(found["mean"])}" cy="{y}" r="{4 if phase == "confirm" else 3}"/>'
            )
            numbers = f"{found['mean']:+.1f}, 95 % interval {found['low']:+.1f} to {found['high']:+.1f}"
            told.append(f"{phase}: {numbers}, {len(found['by_seed'])} seeds")
    title = escape(f"{row['title']}: {'; '.join(told) or 'planned'}")
    return Markup(
        f'<svg class="contrast" viewBox="0 0 {width} 30" role="img"><title>{title}</title>' + "".join(parts) + "</svg>"
    )


def line_chart(
    curves: Mapping[str, Curve], label: str, width: int = 300, height: int = 150, *, last: str | None = None
) -> Markup:
    """Curves over steps on common axes, each in an element of the class `name`. None and non-finite values are left out.

    last: the unit behind the last step; by default, "step" is written before it.
    """
    points = {
        name: [(step, value) for step, value in zip(*curve, strict=True) if value is not None and math.isfinite(value)]
        for name, curve in curves.items()
    }
    every = [point for curve in points.values() for point in curve]
    if not every:
        return Markup("")
    left, right, top, bottom = 40, width - 8, 8, height - 18
    first, final = min(step for step, _ in every), max(step for step, _ in every)
    ticks = nice_ticks(min(value for _, value in every), max(value for _, value in every))
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return left + (right - left) * (step - first) / max(final - first, 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"><title>{escape(label)}</title>']
    end = f"{final} {escape(last)}" if last else f"step {final}"
    parts += [grid_line(left, right, y(tick), f"{tick:.4g}") for tick in ticks]
    parts.append(f'<text x="{left}" y="{height - 4}">{first}</text>')
    parts.append(f'<text x="{right}" y="{height - 4}" text-anchor="end">{end}</text>')
    for name, curve in points.items():
        parts.append(polyline(name, [(x(step), y(value)) for step, value in curve], dots=len(curve) <= 12))
    return Markup("".join([*parts, "</svg>"]))


def grid_line(left: float, right: float, y: float, label: str) -> str:
    """A horizontal line with its label on the left."""
    return (
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{left - 5}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>'
    )


def polyline(name: str, points: Sequence[tuple[float, float]], *, dots: bool) -> str:
    """A curve of the class `name` through points in pixels, each with a dot if `dots`."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    circles = (f'<circle class="point {escape(name)}" cx="{x:.1f}" cy="{y:.1f}" r="2"/>' for x, y in points if dots)
    return f'<polyline class="curve {escape(name)}" points="{path}"/>' + "".join(circles)


def nice_ticks(low: float, high: float, number: int = 3) -> list[float]:
    """At least two round values that enclose [low, high], about `number` intervals apart."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(end, start + 1) + 1)]
