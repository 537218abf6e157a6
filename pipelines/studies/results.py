"""The results file of a study: `studies/results/<name>.json`, made of every kept result.

The same kept results give the same bytes. They hold no dates and no machine; `cost` is the processor time that measuring them took,
so it alone differs where the same cells are measured again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from components.files import write_atomically
from pipelines.errors import one_line
from pipelines.studies.cells import Phase
from pipelines.studies.identity import input_digests, provenance
from pipelines.studies.opened import Opened

RESULTS = "studies/results"
BESIDE = "results/studies"
"""For results that do not replace those in RESULTS, which git has; git ignores this folder."""


def write_results(opened: Opened, *, replace: bool = True) -> Path:
    """Write `studies/results/<name>.json` from the results so far, without measuring. Returns the path.

    Without `replace`, a file there that has cells which these results lack, is of another plan or other parameters, or cannot be
    read, stays as it is, and these results are written to `results/studies/<name>.json`. Without any result, all is "planned".
    """
    document = document_of(opened)
    path = opened.workspace.path(f"{RESULTS}/{opened.name}.json")
    reason = None if replace else _why_kept(path, document)
    if reason:
        print(f"{path}: stays, as it {reason}; `study {opened.name} --summary` replaces it", flush=True)
        path = opened.workspace.path(f"{BESIDE}/{opened.name}.json")
    write_atomically(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False) + "\n")
    print(f"wrote {path}: {document['done']} of {document['of']} cells", flush=True)
    return path


def document_of(opened: Opened) -> dict[str, Any]:
    """Return the results so far as JSON values.

    "phases" has for each phase how many of its cells are done; "planned" the keys of the cells without a result; "cost" the
    processor seconds of the kept results in all and by the function that measured them.
    """
    done = opened.done()
    reads = sorted({key for cell in opened.cells for key in cell.reads})
    document = {
        "study": opened.name,
        **provenance(opened.study.code, opened.plan_file),
        "done": len(done),
        "of": len(opened.cells),
        "phases": {
            phase: {"done": sum(cell.key in done for cell in own), "of": len(own)}
            for phase in get_args(Phase)
            if (own := [cell for cell in opened.cells if cell.phase == phase])
        },
        "planned": sorted(cell.key for cell in opened.cells if cell.key not in done),
        "cost": opened.cost(),
        "plan": opened.plan.model_dump(mode="json"),
        "parameters": opened.params.only(reads),
        "inputs": input_digests(opened.cells, opened.workspace) if done else {},
        "cells": [
            {
                "key": cell.key,
                "fingerprint": opened.identities[cell.key][:16],
                "settings": dict(cell.settings),
                "result": {k: v for k, v in done[cell.key].items() if isinstance(v, str | int | float)},
            }
            for cell in sorted(opened.cells, key=lambda cell: cell.key)
            if cell.key in done
        ],
        "summary": opened.study.summarise(opened.plan, opened.params, done),
    }
    rounded: dict[str, Any] = _rounded(document)
    return rounded


def _why_kept(path: Path, document: Mapping[str, Any]) -> str | None:
    """Return why the results at `path` are not replaced by `document`; None when nothing is lost by it."""
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        missing = {cell["key"] for cell in there["cells"]} - {cell["key"] for cell in document["cells"]}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"cannot be read ({type(error).__name__}: {one_line(error)})"
    if missing:
        return f"has {len(missing)} cells that these results lack"
    changed = [name for name in ("plan", "parameters") if there.get(name) != document[name]]
    return f"is of other {' and '.join(changed)}" if changed else None


def _rounded(value: Any) -> Any:
    """Round floats to 6 significant digits, which is enough for a reader and keeps diffs short."""
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
