"""Fingerprints of cells, and the code revision of a study's results.

Like a stage's fingerprint (`pipelines/identity/fingerprint.py`), a cell's covers everything that its result depends on: the source
files behind the measuring function, the settings, the sections of params.yaml that the cell reads, the contents of its inputs, the
cells it needs, the package lock and the thread count. So a kept result equals what this code would measure, at any revision.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.files import file_digest
from pipelines.identity import closure, fingerprint
from pipelines.identity.closure import sources_behind
from pipelines.identity.fingerprint import LOCK, digest, tree_digests
from pipelines.params import Parameters
from pipelines.records.code_state import code_revision
from pipelines.studies.cells import Cell
from pipelines.workspace import Workspace, git_output

ENGINE_VERSION = 1
PACKAGE = "pipelines.studies"
"""What is imported from here counts if it measures: modules named `<kind>_cells`. The rest changes no result."""


def fingerprints(
    cells: Sequence[Cell], code: str, params: Parameters, workspace: Workspace, threads: int
) -> dict[str, str]:
    """Return the fingerprint of each cell by key, 64 hexadecimal digits. `cells` come after those that they need."""
    root = fingerprint.ROOT
    shared = {
        "engine": ENGINE_VERSION,
        "sources": {source: file_digest(root / source) for source in measuring_sources(code)},
        "lock": file_digest(root / LOCK),
        "threads": threads,
    }
    contents = input_digests(cells, workspace)
    found: dict[str, str] = {}
    for cell in cells:
        found[cell.key] = digest(
            {
                **shared,
                "work": cell.function,
                "settings": dict(cell.settings),
                "parameters": params.only(cell.reads),
                "inputs": {name: contents[path] for name, path in cell.inputs.items()},
                "needs": [found[key] for key in cell.needs],
            }
        )
    return found


def measuring_sources(code: str, root: Path = closure.ROOT) -> list[str]:
    """Return the paths of the source files behind a module of cells and those of other kinds that it uses: sorted, POSIX."""
    used = [Path(file) for file in sources_behind([code], root, (PACKAGE,))]
    modules = [f"{PACKAGE}.{file.stem}" for file in used if file.stem.endswith("_cells")]
    return sources_behind([code, *modules], root)


def input_digests(cells: Sequence[Cell], workspace: Workspace) -> dict[str, str]:
    """Return the SHA-256 over everything at or below each input path of `cells`."""
    paths = sorted({path for cell in cells for path in cell.inputs.values()})
    return {path: digest(tree_digests(workspace.path(path))) for path in paths}


def provenance(code: str, plan: Path) -> Mapping[str, Any]:
    """Return the revision, and whether sources, lock, `plan` or what summarises them differ from it. None without git.

    Other files may differ, such as the results that the study itself writes.
    """
    revision = code_revision(closure.ROOT) or None
    summarising = sources_behind([code.removesuffix("_cells")], counted=(PACKAGE,))
    files = {*measuring_sources(code), *summarising, LOCK, *([str(plan)] if plan.is_relative_to(closure.ROOT) else [])}
    changed = git_output(closure.ROOT, "status", "--porcelain", "--", *sorted(files))
    return {"revision": revision, "dirty": bool(changed) if revision else None}
