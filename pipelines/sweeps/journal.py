"""The journal of a sweep's trials on disk: one line per event, flushed before anything else happens.

<home>/sweeps/<name>-<digest>/
    lock            held by the one driver
    id              random, for this folder
    journal.jsonl   the events
    results.json    the summary (results.py)
    shared/         workspace of the stages that all trials share
    trials/<number>/seed-<seed>/   workspace of a trial with one seed; log.txt beside it

Events: {"event": "suggested", "number", "values", "origin"}, {"event": "report", "number", "step", "value"}, {"event": "ended",
"number", "state", ...}, and for `--retry-failed` {"event": "again", "number"}. A trial that was suggested and has not ended is
started again with the same values, and its stages resume from their checkpoints. So nothing that was finished is computed twice,
and no suggestion is lost.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.files import write_atomically
from pipelines.locks.file_lock import file_lock
from pipelines.provenance.sweep_claims import SWEEPS
from pipelines.sweeps.spaces import configuration_key

WAITING, COMPLETE, STOPPED, BROKEN = "waiting", "finished", "stopped", "failed"


@dataclass
class Trial:
    """One configuration and its outcome."""

    number: int
    values: dict[str, Any]
    state: str = WAITING
    reports: dict[int, float] = field(default_factory=dict)
    """Step -> the scheduler's metric."""
    objectives: list[list[float]] = field(default_factory=list)
    """One list per objective, with one value per seed."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """{"stage", "seed", "fingerprint", "run", "restored", "seconds"} of each stage that ran or was found finished."""
    seconds: float = 0.0
    """Wall time, over all attempts whose end is in the journal."""
    error: str | None = None
    run: str | None = None
    """Its run in MLflow."""
    origin: int | None = None
    """In a population, the trial whose checkpoint it resumes from."""

    @property
    def key(self) -> str:
        return configuration_key(self.values)

    @property
    def steps(self) -> int:
        """The last reported step of the watched stage."""
        return max(self.reports, default=0)

    def means(self) -> list[float]:
        """Return each objective's mean over seeds."""
        return [sum(values) / len(values) for values in self.objectives]


class Journal:
    """The events of one sweep, written by one process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "journal.jsonl"
        self.id_file = root / "id"

    @classmethod
    def of_sweep(cls, identity: str, home: Path) -> "Journal":
        """Return the journal of the sweep with this name and digest in a scratch root."""
        return cls(home / SWEEPS / identity)

    def folder_id(self) -> str:
        """Return the folder's id, which the first call makes: for the process that has locked the sweep.

        It tells this sweep from the same sweep in another scratch root, where their runs are on one MLflow server.
        """
        if not self.id_file.exists():
            write_atomically(self.id_file, uuid.uuid4().hex)
        return self.id_file.read_text(encoding="utf-8")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the sweep. Raises InfrastructureError when another process has locked it."""
        refusal = f"{self.root}: another process runs this sweep; run again when it has ended"
        with file_lock(self.root / "lock", refusal):
            self._mend()
            yield

    def write(self, event: str, number: int, **facts: Any) -> None:
        """Append an event; on disk when this returns."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "number": number, **facts}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def events(self) -> list[dict[str, Any]]:
        """Return all events; a last line torn by a kill is skipped. Raises DataError for a damaged line before it."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        try:
            return [json.loads(line) for line in lines]
        except ValueError as error:
            raise DataError(f"{self.path}: a line is damaged ({error}); restore it, or move the folder away") from error

    def trials(self) -> dict[int, Trial]:
        """Return the trials by number, in the order of suggestion."""
        return replay(self.events())

    def _mend(self) -> None:
        """Cut off a torn last line, so that the next event does not continue it."""
        if self.path.exists():
            whole = self.path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                os.truncate(self.path, end)


def replay(events: list[dict[str, Any]]) -> dict[int, Trial]:
    """Return the trials by number after `events`. A report that came again after a kill counts once."""
    trials: dict[int, Trial] = {}
    for event in events:
        number = event["number"]
        match event["event"]:
            case "suggested":
                trials[number] = Trial(number, event["values"], origin=event.get("origin"))
            case "report":
                trials[number].reports[event["step"]] = event["value"]
            case "ended":
                _end(trials[number], event)
            case "again":
                trials[number].state, trials[number].error = WAITING, None
    return trials


def _end(trial: Trial, event: Mapping[str, Any]) -> None:
    trial.state = event["state"]
    trial.error = event.get("error")
    trial.objectives = event.get("objectives", [])
    trial.stages = event.get("stages", [])
    trial.run = event.get("run")
    trial.seconds += event.get("seconds", 0.0)
