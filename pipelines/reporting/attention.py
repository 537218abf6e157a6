"""The attention mass on text, drawn: for each layer of the transformer two curves over sampler steps."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

from pipelines.reporting.charts import nice_ticks

NAMES = {"base": "without TACA", "taca": "with TACA"}


def mass_panels(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each layer its name, its drawing on axes common to all layers, and its change where TACA is on."""
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
    """One layer's mass in percent over steps; a band where TACA is on, a dashed line at the `uniform` share of the tokens.

    layer: name, mass by arm (one value a step), active (one truth a step). The values of a step show where the pointer rests.
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
    for start, stop in _runs(layer["active"]):
        size = f'width="{across * (stop - start):.1f}" height="{bottom - top}"'
        parts.append(f'<rect class="band" x="{x(start):.1f}" y="{top}" {size}/>')
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text x="{left - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{tick:.4g}{" %" * (tick == ticks[-1])}</text>'
        )
    parts.append(f'<line class="uniform" x1="{left}" x2="{right}" y1="{y(uniform):.1f}" y2="{y(uniform):.1f}"/>')
    parts.append(f'<text x="{left}" y="{height - 5}">step 1, σ {sigma[0]:.2f}</text>')
    parts.append(f'<text x="{right}" y="{height - 5}" text-anchor="end">step {last}, σ {sigma[-1]:.2f}</text>')
    for arm, curve in layer["mass"].items():
        points = [(x(step + 0.5), y(value)) for step, value in enumerate(curve)]
        path = " ".join(f"{a:.1f},{d:.1f}" for a, d in points)
        parts.append(f'<polyline class="curve {escape(arm)}" points="{path}"/>')
        parts += [f'<circle class="point {escape(arm)}" cx="{a:.1f}" cy="{d:.1f}" r="1.9"/>' for a, d in points]
    for step, level in enumerate(sigma):
        told = ", ".join(f"{curve[step]:.1f} % {NAMES.get(arm, arm)}" for arm, curve in layer["mass"].items())
        parts.append(
            f'<rect class="hover" x="{x(step):.1f}" y="{top}" width="{across:.1f}" height="{bottom - top}">'
            f"<title>step {step + 1}, σ {level:.3f}: {escape(told)}</title></rect>"
        )
    return Markup("".join([*parts, "</svg>"]))


def _runs(truths: Sequence[bool]) -> list[tuple[int, int]]:
    """Where neighbours are true, as (first, one past the last)."""
    found = []
    for true, group in groupby(enumerate(truths), key=lambda pair: pair[1]):
        places = [place for place, _ in group]
        if true:
            found.append((places[0], places[-1] + 1))
    return found
