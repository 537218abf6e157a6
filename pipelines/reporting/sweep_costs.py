"""The savings and the overhead of sweeps that `benchmarks/sweeps.py` measured."""

import json
from typing import Any

from components.errors import DataError
from pipelines.workspace import Workspace

MEASURED = "benchmarks/results/sweeps.json"
MACHINE = ("cores", "machine", "python")


def sweep_costs(workspace: Workspace) -> dict[str, Any] | None:
    """Both measurements (None for a missing one) and their machine; None without any. Raises DataError for an unreadable file."""
    file = workspace.path(MEASURED)
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        either = found.get("asha") or found["overhead"]
        machine = {key: either[key] for key in MACHINE}
        return {"asha": found.get("asha"), "overhead": found.get("overhead"), "machine": machine}
    except (ValueError, KeyError) as error:
        raise DataError(f"{MEASURED}: cannot be shown ({error!r}); run `python benchmarks/sweeps.py` again") from error
