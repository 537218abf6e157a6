"""How a person names a run: by its id, or the first letters of it."""

import re
from typing import TYPE_CHECKING

from components.errors import DataError, ParameterError
from pipelines.tracking.runs import Tracker, known_run, public_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

SHORT, SHORTEST = 8, 4
"""Letters of an id that are shown, and that are needed."""


def find_run(tracker: Tracker, text: str) -> "Run":
    """Return the run whose id is `text` or begins with it; a beginning is looked up in the workspace's experiment.

    Raises DataError without such a run, ParameterError when several ids begin so.
    """
    tracker.rename_former_levels()
    found: list[Run] = []
    if re.fullmatch(r"[0-9a-f]{32}", text):
        found = [run for run in [known_run(text, tracker.client)] if run]
    elif re.fullmatch(rf"[0-9a-f]{{{SHORTEST},31}}", text):
        begins = f"attributes.run_id LIKE '{text}%'"
        found = list(tracker.client.search_runs([tracker.experiment], begins, max_results=SHORT))
    if not found:
        advice = f"give an id, or its first {SHORTEST} or more letters: `python -m pipelines runs` lists them"
        raise DataError(f"no run {text!r} at {public_uri(tracker.workspace)}: {advice}")
    if len(found) > 1:
        ids = ", ".join(run.info.run_id for run in found)
        raise ParameterError(f"run {text!r}: several ids begin so ({ids}): give more letters")
    return found[0]
