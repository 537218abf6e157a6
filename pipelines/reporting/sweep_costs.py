"""What sweeps save and cost, as `benchmarks/sweeps.py` measured it."""

import json
from typing import Any

from components.errors import DataError
from pipelines.workspace import Workspace

MEASURED = "benchmarks/results/sweeps.json"
MACHINE = ("cores", "machine", "python")


def sweep_costs(workspace: Workspace) -> dict[str, Any] | None:
    """Both measurements (None for one that is not there) and their machine; None without any. Raises DataError for a torn file."""
    file = workspace.path(MEASURED)
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        either = found.get("asha") or found["overhead"]
        return {
            "asha": found.get("asha"),
            "overhead": found.get("overhead"),
            "machine": {key: either[key] for key in MACHINE},
        }
    except (ValueError, KeyError) as error:
        raise DataError(f"{MEASURED}: cannot be shown ({error!r}); run `python benchmarks/sweeps.py` again") from error
