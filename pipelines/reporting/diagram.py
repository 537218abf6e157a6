"""The graph of stages, drawn in layers from left to right (after Sugiyama: layers, crossings, coordinates).

Edges that a longer path implies are left out, and one that crosses layers passes through a free place in each, so that no line runs
behind a box.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

from pipelines.graph import Stage, runs_of

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 120, 44, 148, 62, 10
Edge = tuple[str, str]
Node = str | tuple[str, str, int]
"""A stage, or the place where an edge (from, to) passes a layer."""


@dataclass(frozen=True)
class Label:
    """What a box says below its name, and the class that gives its colour."""

    text: str
    kind: str


def edges(stages: Sequence[Stage]) -> set[Edge]:
    """(maker, reader) of every stage that reads another's output, without those that follow from others."""
    maker = {path: stage.name for stage in stages for run in runs_of(stage) for path in run.all_outputs}
    direct = {
        (maker[path], stage.name)
        for stage in stages
        for run in runs_of(stage)
        for path in run.inputs.values()
        if path in maker
    }
    after: dict[str, set[str]] = {}
    for stage in reversed(stages):
        readers = {reader for source, reader in direct if source == stage.name}
        after[stage.name] = readers.union(*(after[reader] for reader in readers))
    return {
        (source, reader)
        for source, reader in direct
        if not any(reader in after[other] for start, other in direct if start == source and other != reader)
    }


def layers(stages: Sequence[Stage], joined: set[Edge]) -> list[list[Node]]:
    """Stages by the length of the longest path to them, with the passing places of long edges, ordered to cross little."""
    depth: dict[str, int] = {}
    for stage in stages:
        depth[stage.name] = 1 + max((depth[source] for source, reader in joined if reader == stage.name), default=-1)
    rows: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    for stage in stages:
        rows[depth[stage.name]].append(stage.name)
    for source, reader in sorted(joined):
        for layer in range(depth[source] + 1, depth[reader]):
            rows[layer].append((source, reader, layer))
    links = _links(joined, depth)
    for sweep in range(8):
        forward = sweep % 2 == 0
        for layer in range(1, len(rows)) if forward else range(len(rows) - 2, -1, -1):
            place = {node: i - (len(row) - 1) / 2 for row in rows for i, node in enumerate(row)}
            neighbours: dict[Node, list[float]] = {}
            for a, b in links:
                near, node = (a, b) if forward else (b, a)
                neighbours.setdefault(node, []).append(place[near])
            means = {node: _mean(neighbours.get(node), place[node]) for node in rows[layer]}
            rows[layer].sort(key=means.__getitem__)
    return rows


def straighten(
    rows: Sequence[Sequence[Node]], links: Sequence[tuple[Node, Node]], sweeps: int = 40
) -> dict[Node, float]:
    """How far down each place lies, from 0: near its neighbours, so that lines are straight, and 1 apart within a layer."""
    level: dict[Node, float] = {node: i - (len(row) - 1) / 2 for row in rows for i, node in enumerate(row)}
    neighbours: dict[Node, list[Node]] = {node: [] for node in level}
    for a, b in links:
        neighbours[a].append(b)
        neighbours[b].append(a)
    for _ in range(sweeps):
        for row in rows:
            wanted = [_mean([level[other] for other in neighbours[node]], level[node]) for node in row]
            placed: list[float] = []
            for value in wanted:
                placed.append(max(value, placed[-1] + 1) if placed else value)
            shift = (sum(wanted) - sum(placed)) / len(row)
            level.update((node, value + shift) for node, value in zip(row, placed, strict=True))
    top = min(level.values())
    # Rounding to halves makes nearly level lines level; it keeps whole distances, so nothing comes closer than 1.
    return {node: math.floor(2 * (value - top) + 0.5) / 2 for node, value in level.items()}


def draw(stages: Sequence[Stage], labels: Mapping[str, Label]) -> Markup:
    """An SVG of the graph; each box links to `#stage-<name>`."""
    joined = edges(stages)
    rows = layers(stages, joined)
    levels = straighten(rows, _links(joined, _depth(rows)))
    centre = {
        node: (MARGIN + WIDTH / 2 + column * ACROSS, MARGIN + HEIGHT / 2 + levels[node] * DOWN)
        for column, row in enumerate(rows)
        for node in row
    }
    width = 2 * MARGIN + WIDTH + (len(rows) - 1) * ACROSS
    height = 2 * MARGIN + HEIGHT + max(levels.values()) * DOWN
    depth = _depth(rows)
    parts = [
        f'<svg class="dag" viewBox="0 0 {width} {height:.0f}" role="img"><title>The stages and how they join</title>'
    ]
    for source, reader in sorted(joined):
        parts.append(_edge([centre[node] for node in _path(source, reader, depth)]))
    parts += [_box(stage, labels[stage.name], *centre[stage.name]) for stage in stages]
    return Markup("".join([*parts, "</svg>"]))


def _depth(rows: Sequence[Sequence[Node]]) -> dict[str, int]:
    return {node: column for column, row in enumerate(rows) for node in row if isinstance(node, str)}


def _path(source: str, reader: str, depth: Mapping[str, int]) -> list[Node]:
    return [source, *((source, reader, layer) for layer in range(depth[source] + 1, depth[reader])), reader]


def _links(joined: set[Edge], depth: Mapping[str, int]) -> list[tuple[Node, Node]]:
    paths = [_path(source, reader, depth) for source, reader in sorted(joined)]
    return [(a, b) for path in paths for a, b in pairwise(path)]


def _mean(values: list[float] | None, otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _edge(points: list[tuple[float, float]]) -> str:
    """A smooth line from the right of the first box to the left of the last, level where it passes a layer."""
    x, y = points[0][0] + WIDTH / 2, points[0][1]
    path = [f"M{x:.0f},{y:.0f}"]
    for i, (centre, level) in enumerate(points[1:], 1):
        left, bend = centre - WIDTH / 2, (ACROSS - WIDTH) / 2
        path.append(f"C{x + bend:.0f},{y:.0f} {left - bend:.0f},{level:.0f} {left:.0f},{level:.0f}")
        x, y = left, level
        if i < len(points) - 1:
            x = centre + WIDTH / 2
            path.append(f"L{x:.0f},{level:.0f}")
    return f'<path class="edge" d="{" ".join(path)}"/>'


def _box(stage: Stage, label: Label, x: float, y: float) -> str:
    name = escape(stage.name)
    arms = "".join(
        f'<rect class="arm" x="{x + WIDTH / 2 - 9 - 7 * i:.0f}" y="{y - HEIGHT / 2 - 3:.0f}" width="5" height="6" rx="1"/>'
        for i in range(len(stage.arms))
    )
    return (
        f'<a href="#stage-{name}"><g class="node {escape(label.kind)}">'
        f'<rect class="box" x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" rx="8"/>{arms}'
        f'<text class="name" x="{x:.0f}" y="{y - 2:.0f}" text-anchor="middle">{name}</text>'
        f'<text class="note" x="{x:.0f}" y="{y + 14:.0f}" text-anchor="middle">{escape(label.text)}</text></g></a>'
    )
