"""The source files that a stage's result depends on: the import closure of its file.

Found by reading import statements, wherever they stand, without running anything. The rest of `pipelines/` changes no result:
`tests/pipelines/test_graph.py` lists its rooms with the reason for each.
"""

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pipelines.graph import Stage

ROOT = Path(__file__).resolve().parents[2]
COUNTED = ("components", "pipelines.stages", "pipelines.streaming")
"""Packages whose files count where a stage imports them. Streaming decides which pairs are in a batch."""


def stage_sources(stage: Stage, root: Path = ROOT) -> list[str]:
    """Return the paths of the source files behind `stage`, sorted, relative to the repository, POSIX."""
    return sources_behind([f"pipelines.stages.{name}" for name in (stage.name, *stage.code)], root)


def sources_behind(modules: Sequence[str], root: Path = ROOT, counted: Sequence[str] = COUNTED) -> list[str]:
    """Return the paths of `modules` and of all they import from `counted` packages; sorted, relative to the repository, POSIX."""
    todo = list(modules)
    seen: set[str] = set()
    files: set[Path] = set()
    while todo:
        module = todo.pop()
        if module in seen or not (module in modules or _is_in(counted, module)):
            continue
        seen.add(module)
        file = _file(module, root)
        if file is None:
            continue
        files.add(file)
        todo += [*_imports(file, file_state(file)), *([module.rpartition(".")[0]] if "." in module else [])]
    return sorted(file.relative_to(root).as_posix() for file in files)


def _is_in(packages: Sequence[str], module: str) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def _file(module: str, root: Path) -> Path | None:
    """Return the file of a module or package; None for a name inside a module (`from package import name`)."""
    path = root.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def file_state(file: Path) -> tuple[int, int, int]:
    """Return size, time of change and inode: while they are the same, so is the content, but for a change within one clock tick."""
    known = file.stat()
    return known.st_size, known.st_ctime_ns, known.st_ino


@cache
def _imports(file: Path, state: tuple[int, int, int]) -> tuple[str, ...]:
    """Return every dotted name that `file` imports; `from a import b` yields both `a` and `a.b`, because `b` may be a module.

    Read again when its `file_state` changes.
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
