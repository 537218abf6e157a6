"""Small drawings as inline SVG: intervals and curves. Colours come from the page's style sheet, so they follow light and dark."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

Numbers = Sequence[float | None]
Curve = tuple[Sequence[int], Numbers]


def scale(low: float, high: float, step: float = 10) -> tuple[float, float]:
    """An axis that holds [low, high] and ends on multiples of `step`."""
    start, end = step * math.floor(low / step), step * math.ceil(high / step)
    return start, end if end > start else start + step


def interval_bar(interval: Mapping[str, float], axis: tuple[float, float], kind: str = "", width: int = 170) -> Markup:
    """A dot at the mean and a line from low to high, on an axis; a tick at 0 where 0 is inside the axis."""
    start, end = axis

    def x(value: float) -> str:
        return f"{4 + (width - 8) * (min(max(value, start), end) - start) / (end - start):.1f}"

    zero = f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="1" y2="17"/>' if start < 0 < end else ""
    title = f"{interval['mean']:.1f}, 95 % interval {interval['low']:.1f} to {interval['high']:.1f}"
    return Markup(
        f'<svg class="bar {escape(kind)}" width="{width}" height="18" viewBox="0 0 {width} 18" role="img"><title>{title}</title>'
        f'<line class="rail" x1="4" x2="{width - 4}" y1="9" y2="9"/>{zero}'
        f'<line class="span" x1="{x(interval["low"])}" x2="{x(interval["high"])}" y1="9" y2="9"/>'
        f'<circle class="dot" cx="{x(interval["mean"])}" cy="9" r="4"/></svg>'
    )


def line_chart(
    curves: Mapping[str, Curve], label: str, width: int = 300, height: int = 150, *, last: str | None = None
) -> Markup:
    """Curves over steps on common axes; each has its name as its class. Values that are None or not finite are left out.

    `last` follows the last value of the axis; without it "step" comes before it.
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
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    parts.append(f'<text x="{left}" y="{height - 4}">{first}</text>')
    parts.append(f'<text x="{right}" y="{height - 4}" text-anchor="end">{end}</text>')
    for name, curve in points.items():
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in curve)
        parts.append(f'<polyline class="curve {escape(name)}" points="{path}"/>')
        if len(curve) <= 12:
            parts += [f'<circle class="point {escape(name)}" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2"/>' for s, v in curve]
    return Markup("".join([*parts, "</svg>"]))


def nice_ticks(low: float, high: float, number: int = 3) -> list[float]:
    """At least two round values that enclose [low, high], about `number` intervals apart."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / number
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(start, max(end, start + 1) + 1)]
