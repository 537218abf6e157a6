"""The graph of stages as an SVG, in layers from left to right, placed by grandalf (which also places the boxes of `dvc dag`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx
from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout
from grandalf.routing import EdgeViewer
from markupsafe import Markup, escape

from pipelines.graph import Stage, runs_of

WIDTH, HEIGHT, MARGIN = 120, 44, 10
BETWEEN_COLUMNS, BETWEEN_ROWS = 28, 18
Point = tuple[float, float]


@dataclass(frozen=True)
class Label:
    """The text below a box's name, and the CSS class that sets its colour."""

    text: str
    kind: str


@dataclass
class _Box:
    """The size of a vertex and, once placed, its centre. grandalf draws downwards: its x is our y."""

    w: float = HEIGHT
    h: float = WIDTH
    xy: Point = (0.0, 0.0)


def edges(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """(maker, reader) of every stage that reads another's output, sorted, without edges that a longer path implies."""
    runs = [run for stage in stages for run in runs_of(stage)]
    maker = {path: run.stage.name for run in runs for path in run.all_outputs}
    direct = [(maker[path], run.stage.name) for run in runs for path in run.inputs.values() if path in maker]
    return sorted(networkx.transitive_reduction(networkx.DiGraph(direct)).edges)


def draw(stages: Sequence[Stage], labels: Mapping[str, Label]) -> Markup:
    """An SVG of the graph; each box links to `#stage-<name>`."""
    centres, lines = _place(stages)
    width = max(x for line in lines for x, _ in line) + WIDTH / 2 + MARGIN
    height = max(y for line in lines for _, y in line) + HEIGHT / 2 + MARGIN
    parts = [
        f'<svg class="dag" viewBox="0 0 {width:.0f} {height:.0f}" role="img"><title>Stages and their dependencies</title>',
        *(_line(points) for points in lines),
        *(_box(stage, labels[stage.name], *centres[stage.name]) for stage in stages),
    ]
    return Markup("".join([*parts, "</svg>"]))


def _place(stages: Sequence[Stage]) -> tuple[dict[str, Point], list[list[Point]]]:
    """The centre of each box, and the points of each edge (the centres that it joins, and one in each layer between), in pixels."""
    vertices = {stage.name: Vertex(stage.name) for stage in stages}
    for vertex in vertices.values():
        vertex.view = _Box()
    joins = [Edge(vertices[source], vertices[reader]) for source, reader in edges(stages)]
    for join in joins:
        join.view = EdgeViewer()
    layout = SugiyamaLayout(Graph(list(vertices.values()), joins).C[0])  # one component: the report reads every stage
    layout.xspace, layout.yspace = BETWEEN_ROWS, BETWEEN_COLUMNS
    layout.init_all(roots=[vertex for vertex in vertices.values() if not vertex.e_in()])
    layout.draw(8)
    top, left = (min(values) for values in zip(*(point for join in joins for point in join.view._pts), strict=True))

    def moved(point: Point) -> Point:
        return point[1] - left + WIDTH / 2 + MARGIN, point[0] - top + HEIGHT / 2 + MARGIN

    centres = {name: moved(vertex.view.xy) for name, vertex in vertices.items()}
    return centres, [[moved(point) for point in join.view._pts] for join in joins]


def _line(points: Sequence[Point]) -> str:
    """A smooth line from the right of the first box to the left of the last, level where it passes a layer."""
    x, y = points[0][0] + WIDTH / 2, points[0][1]
    path, bend = [f"M{x:.0f},{y:.0f}"], BETWEEN_COLUMNS / 2
    for centre, level in points[1:]:
        left, right = centre - WIDTH / 2, centre + WIDTH / 2
        path.append(f"C{x + bend:.0f},{y:.0f} {left - bend:.0f},{level:.0f} {left:.0f},{level:.0f}")
        path.append(f"L{right:.0f},{level:.0f}")
        x, y = right, level
    return f'<path class="edge" d="{" ".join(path[:-1])}"/>'


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
