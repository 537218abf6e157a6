"""What the scheduler works with, and what it gives back: tests give it pretended parts."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pipelines.graph import StageRun
from pipelines.scheduling.needs import Decision


class State(StrEnum):
    """How a stage run stands, in words for people."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FOUND = "found"
    FAILED = "failed"
    STOPPED = "stopped"
    NOT_RUN = "not run"


class Repository(Protocol):
    """What DVC knows and keeps."""

    def decide(self, run: StageRun, *, force: bool = False) -> Decision: ...

    def put_in_place(self, run: StageRun, decision: Decision) -> bool:
        """Put outs in place. Return False where the stage has to be run for it after all."""

    def before_run(self, run: StageRun) -> None: ...

    def record(self, runs: Sequence[StageRun]) -> Mapping[str, str]:
        """Record results that are in place; return the reason for each that was not recorded, by address."""


class RunningStage(Protocol):
    """The process of a stage run."""

    @property
    def pid(self) -> int: ...

    @property
    def log(self) -> Path:
        """The file with its output."""

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of its output."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def reason(self) -> str:
        """Return in one line why it has ended."""

    def stop(self) -> None:
        """Ask it to save its state and end."""

    def interrupt(self) -> None:
        """Ask it to end at once."""

    def kill(self) -> None: ...


class Starter(Protocol):
    def prepare(self, run: StageRun) -> None:
        """Do what may fail, while the outputs of the run are still there."""

    def start(self, run: StageRun, environment: Mapping[str, str]) -> RunningStage: ...


class View(Protocol):
    """What a person sees."""

    def started(self, run: StageRun, stage: RunningStage) -> None: ...

    def ended(self, run: StageRun, result: "Result") -> None: ...

    def waiting(self) -> None:
        """Called many times a second while stages run."""

    def say(self, text: str) -> None: ...


class Signals(Protocol):
    """Requests to stop."""

    @property
    def received(self) -> int:
        """How many Ctrl-C and SIGTERM have come."""

    def interrupting(self) -> AbstractContextManager[None]:
        """Raise KeyboardInterrupt for one that comes inside the block, where nothing is lost by it."""


@dataclass(frozen=True)
class Result:
    """How a stage run has ended. `code` is the exit code of one that failed, `reason` one line about it."""

    state: State
    seconds: float = 0.0
    reason: str = ""
    code: int = 0
    log: Path | None = None


@dataclass
class Summary:
    """How every stage run of a plan has ended, by address."""

    results: dict[str, Result] = field(default_factory=dict)
    exit_code: int = 0
    """0, that of the first failure, or that of an interruption."""
