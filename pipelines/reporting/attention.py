"""Charts of the attention mass on text: for each layer of the transformer, two curves over sampler steps."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from pipelines.reporting.charts import grid_line, nice_ticks, polyline

NAMES = {"base": "without TACA", "taca": "with TACA"}


def mass_panels(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The name, the chart and the change by TACA of each layer; the charts share their axes."""
    values = [value for layer in section["layers"] for curve in layer["mass"].values() for value in curve]
    ticks = nice_ticks(0, max([*values, section["uniform_share"]]), 5)
    return [
        {
            "name": layer["name"],
            "change": layer["change"],
            "svg": mass_chart(layer, section["sigma"], section["uniform_share"], ticks),
        }
        for layer in section["layers"]
    ]


def mass_chart(
    layer: Mapping[str, Any],
    sigma: Sequence[float],
    uniform: float,
    ticks: Sequence[float],
    width: int = 300,
    height: int = 176,
) -> Markup:
    """The mass of one layer in percent over steps; a band where TACA is on, a dashed line at the mass of `uniform` attention.

    layer: name, mass by arm (one value per step), active (one bool per step). Tooltips show the values of a step.
    """
    left, right, top, bottom, last = 34, width - 6, 8, height - 20, len(sigma)
    across = (right - left) / last  # every step has a column of this width, its points in the middle

    def x(place: float) -> float:
        return left + across * place

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = [
        f'<svg class="chart mass" viewBox="0 0 {width} {height}" role="img"><title>{escape(layer["name"])}: share of image '
        "attention on text, by sampler step</title>"
    ]
    for start, stop in _active_ranges(layer["active"]):
        size = f'width="{across * (stop - start):.1f}" height="{bottom - top}"'
        parts.append(f'<rect class="band" x="{x(start):.1f}" y="{top}" {size}/>')
    parts += [grid_line(left, right, y(tick), f"{tick:.4g}{' %' * (tick == ticks[-1])}") for tick in ticks]
    parts.append(f'<line class="uniform" x1="{left}" x2="{right}" y1="{y(uniform):.1f}" y2="{y(uniform):.1f}"/>')
    parts.append(f'<text x="{left}" y="{height - 5}">step 1, σ {sigma[0]:.2f}</text>')
    parts.append(f'<text x="{right}" y="{height - 5}" text-anchor="end">step {last}, σ {sigma[-1]:.2f}</text>')
    for arm, curve in layer["mass"].items():
        parts.append(polyline(arm, [(x(step + 0.5), y(value)) for step, value in enumerate(curve)], dots=True))
    for step, level in enumerate(sigma):
        values = ", ".join(f"{curve[step]:.1f} % {NAMES.get(arm, arm)}" for arm, curve in layer["mass"].items())
        parts.append(
            f'<rect class="hover" x="{x(step):.1f}" y="{top}" width="{across:.1f}" height="{bottom - top}">'
            f"<title>step {step + 1}, σ {level:.3f}: {escape(values)}</title></rect>"
        )
    return Markup("".join([*parts, "</svg>"]))


def _active_ranges(active: Sequence[bool]) -> list[tuple[int, int]]:
    """The ranges of steps where TACA is on, as (first, last + 1)."""
    groups = [list(group) for _, group in groupby(enumerate(active), key=lambda step: step[1])]
    return [(group[0][0], group[-1][0] + 1) for group in groups if group[0][1]]
