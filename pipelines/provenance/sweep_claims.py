"""Which results a sweep keeps from `gc`; `pipelines.sweeps.journal` documents its folder.

A trial that ended may be promoted, and then `dvc repro` finds its stages finished: so the results of all trials are kept until one
was promoted, and that one's for longer.
"""

import json
from pathlib import Path

from components.errors import DataError
from components.files import write_atomically
from pipelines.errors import InfrastructureError, one_line
from pipelines.locks.file_lock import file_lock
from pipelines.scratch.folder import LOCK_FILE

SWEEPS = "sweeps"
"""The folder of all sweeps in the scratch root."""
PROMOTED_FILE = "promoted.json"
"""In the folder of a sweep: the numbers of the trials that were promoted."""


def record_promotion(sweep: Path, number: int) -> None:
    """Note in the folder of a sweep that a trial was promoted, where the sweep ran with this scratch root."""
    if sweep.is_dir():
        write_atomically(sweep / PROMOTED_FILE, json.dumps(sorted({*promoted(sweep), number})))


def promoted(sweep: Path) -> list[int]:
    """Return the numbers of the trials of a sweep that were promoted. Raises DataError where they cannot be read."""
    file = sweep / PROMOTED_FILE
    try:
        return [int(number) for number in json.loads(file.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({one_line(error)}): must be the promoted trials' numbers, as [0, 3]: mend it"
        ) from None


def sweep_needs(sweep: Path, root: Path, *, freed: bool) -> str | None:
    """Return why a sweep needs the results of its workspace at `root`, in words that follow "folders that"; None if it does not.

    `freed`: it needs none once it has ended.
    """
    if not sweep.is_dir():
        return None
    if not _ended(sweep):
        return f"sweep {sweep.name} uses, which has not ended"
    if freed:
        return None
    chosen = promoted(sweep)
    if chosen and root.parent.name not in [f"{number:03d}" for number in chosen]:
        return None
    return f"sweep {sweep.name} has made: `promote` one of its trials, or free them with `gc --sweeps`"


def _ended(sweep: Path) -> bool:
    """Return whether all trials of a sweep have ended and no driver runs it; without a summary that says so, it has not."""
    try:
        summary = json.loads((sweep / "results.json").read_text(encoding="utf-8"))
        if summary["counts"]["waiting"]:
            return False
        with file_lock(sweep / LOCK_FILE, "a driver runs it"):
            return True
    except (OSError, ValueError, KeyError, TypeError, InfrastructureError):
        return False
