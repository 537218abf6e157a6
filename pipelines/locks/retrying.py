"""How failures are retried, in one place.

Two things pass by themselves. Something around the work is *away* (a server, a mount, a bucket, a cluster's dashboard): the same
call is repeated for a limited time (`retry`). A part of the work has *lost* its process, storage or memory (killed, its node gone,
a disk that does not answer): the work is started again, a limited number of times (`RetryPolicy`). Neither a user's mistake nor a
bug is tried again: both would be met again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from pipelines.errors import INTERRUPTED, TRY_AGAIN, InfrastructureError, exit_code

Result = TypeVar("Result")


class ProcessLostError(InfrastructureError):
    """A process of the work was lost, or could not be started: another attempt may succeed."""


class Decision(Enum):
    """What is done after an attempt that failed."""

    AGAIN = "start it again now"
    LATER = "leave it unfinished: the same command resumes it"
    NEVER = "report it: another attempt would fail in the same way"


@dataclass(frozen=True)
class RetryPolicy:
    """Decides from the status of an attempt alone: the exit code of its process, or `exit_code` of its error."""

    retries: int

    def decide(self, status: int, failures: int) -> Decision:
        """Return what to do after the `failures`-th failed attempt. A negative status, or one above 128, is a signal's."""
        if status in (INTERRUPTED, -2, -15, 128 + 15):  # SIGINT and SIGTERM: somebody asked for it
            return Decision.LATER
        if status == TRY_AGAIN or status < 0 or status > 128:
            return Decision.AGAIN if failures <= self.retries else Decision.LATER
        return Decision.NEVER


class RetryBudget:
    """Counts the failed attempts at one work; `spend` raises the error of the last."""

    def __init__(self, retries: int) -> None:
        self.policy = RetryPolicy(retries)
        self.failures = 0

    def spend(self, error: BaseException) -> None:
        """Count an attempt that failed with `error`, and raise it unless the work is to be started again."""
        self.failures += 1
        if self.policy.decide(exit_code(error), self.failures) is not Decision.AGAIN:
            raise error


def retry(
    action: Callable[[], Result],
    *,
    timeout: float,
    away: Callable[[Exception], bool],
    on_wait: Callable[[Exception], None] = lambda error: None,
    pause: float = 0.5,
) -> Result:
    """Return what `action` returns, repeating it every `pause` seconds while it raises an error for which `away` is true.

    `on_wait` is called once, before the first pause. After `timeout` seconds the last error is raised; any other is raised at once.
    """
    deadline = time.monotonic() + timeout
    waited = False
    while True:
        try:
            return action()
        except Exception as error:
            if not away(error) or time.monotonic() >= deadline:
                raise
            if not waited:
                waited = True
                on_wait(error)
        time.sleep(pause)
