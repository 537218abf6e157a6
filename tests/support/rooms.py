"""The rooms of the code, from top to bottom, and the imports between them.

A room is a package, or a single file, of `components/` or `pipelines/`. It imports only rooms of lower rows: `tests/test_rooms.py`
holds every import against `ROWS`, and `make rooms` writes the picture of it into `docs/architecture.md`.
"""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms: written by `make rooms` -->\n", "<!-- end of rooms -->\n"

ROWS: tuple[tuple[str, ...], ...] = (
    ("pipelines.__main__",),
    ("pipelines.commands",),
    ("pipelines.health", "pipelines.serving"),
    (
        "pipelines.comparing",
        "pipelines.curating",
        "pipelines.evaluating",
        "pipelines.generating",
        "pipelines.search",
        "pipelines.studies",
    ),
    ("pipelines.sweeps",),
    ("pipelines.reporting",),
    ("pipelines.scheduling",),
    ("pipelines.provenance", "pipelines.jobs"),
    ("pipelines.stages",),
    ("pipelines.stages.parts",),
    ("pipelines.streaming",),
    ("pipelines.engine",),
    ("pipelines.records",),
    ("pipelines.tracking",),
    ("pipelines.scratch", "pipelines.dvc_files"),
    ("pipelines.identity", "pipelines.locks"),
    ("pipelines.presets",),
    ("pipelines.params",),
    ("pipelines.schema",),
    ("pipelines.graph", "pipelines.workspace"),
    ("pipelines.errors",),
    ("pipelines.redaction", "pipelines.terminal", "pipelines.threads"),
    ("components.search",),
    ("components.search.gallery",),
    ("components.gadms", "components.taca", "components.search.index"),
    ("components.evaluation",),
    ("components.persons.curation", "components.persons.streaming"),
    ("components.persons.drawn", "components.persons.published"),
    ("components.persons",),
    ("components.training",),
    ("components.settings", "components.text_files", "components.weight_files"),
    ("components.clip_tokenizer", "components.exports", "components.files", "components.errors"),
)
"""A room imports none of its own row, nor of a row above."""

ROOMS = [room for row in ROWS for room in row]


def modules() -> dict[str, Path]:
    """Every module of the two halves and its file; a package goes by its own name."""
    found = {}
    for half in ("components", "pipelines"):
        for file in sorted((ROOT / half).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def room_of(module: str) -> str | None:
    """The room that holds `module`: the longest that it begins with. None for the two halves themselves."""
    fitting = [room for room in ROOMS if module == room or module.startswith(room + ".")]
    return max(fitting, key=len, default=None)


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """For each module the modules of ours that it imports anywhere: at the top, inside functions, for type checkers."""
    files = modules()
    return {module: frozenset(_imported(file, files)) - {module} for module, file in files.items()}


def _imported(file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:  # a name inside a module
                name = name.rpartition(".")[0]
            if name:
                yield name


@cache
def arrows() -> Mapping[str, frozenset[str]]:
    """For each room the other rooms that its files import."""
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, imported in imports().items():
        room = room_of(module)
        if room:
            found[room] |= {other for other in map(room_of, imported) if other and other != room}
    return {room: frozenset(others) for room, others in found.items()}


def below(room: str) -> set[str]:
    """Every room that `room` imports, straight or through others."""
    seen: set[str] = set()
    todo = [room]
    while todo:
        new = arrows()[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


def picture() -> str:
    """The rooms as a Mermaid flow chart; an arrow that follows from others is left out."""
    lines = ["```mermaid", "flowchart TD"]
    for half in ("pipelines", "components"):
        lines.append(f"  subgraph {half}")
        lines += [f'    {_id(room)}["{room.partition(".")[2]}"]' for room in ROOMS if room.startswith(half + ".")]
        lines.append("  end")
    for room in ROOMS:
        direct = arrows()[room]
        implied: set[str] = set().union(*(below(other) for other in direct))
        lines += [f"  {_id(room)} --> {_id(other)}" for other in ROOMS if other in direct - implied]
    return "\n".join([*lines, "```", ""])


def table() -> str:
    """One line per room: its name and the first sentence of its docstring."""
    lines = ["| room | what belongs in it |", "|---|---|"]
    for room in ROOMS:
        file = modules()[room]
        said = (ast.get_docstring(ast.parse(file.read_bytes())) or "").partition("\n")[0]
        path = file.parent if file.name == "__init__.py" else file
        lines.append(f"| `{path.relative_to(ROOT).as_posix()}` | {said} |")
    return "\n".join([*lines, ""])


def written(page: str) -> str:
    """`page` with the picture and the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{picture()}\n{table()}\n{END}{rest.partition(END)[2]}"


def _id(room: str) -> str:
    return room.replace(".", "_").replace("__main__", "main")


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
