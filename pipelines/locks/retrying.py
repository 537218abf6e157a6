"""How failures are retried, in one place.

Two things pass by themselves. Something around the work is *away* (a server, a mount, a bucket, a cluster's dashboard): the same
call is repeated for a limited time (`retry`). A process of the work is *lost* (killed, out of memory, its node gone): the work is
started again, a limited number of times (`RetryBudget`). A user's mistake is never retried; a trial of a sweep or a cell of a study
that failed is reported, and retried by the next command.
"""

import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.errors import InfrastructureError, is_expected

Result = TypeVar("Result")


class ProcessLostError(InfrastructureError):
    """A process of the work was lost, or could not be started: another attempt may succeed."""


def is_retryable(error: BaseException) -> bool:
    """Return whether another attempt at the same work may succeed: not after a user's mistake, which would be made again."""
    return isinstance(error, ProcessLostError) or not is_expected(error)


class RetryBudget:
    """Counts failed attempts; `spend` raises the error of one attempt more than `retries` allows."""

    def __init__(self, retries: int) -> None:
        self.retries = retries
        self.failures = 0

    def spend(self, error: BaseException) -> None:
        """Count an attempt that failed with `error`, and raise it unless the work may be tried again."""
        self.failures += 1
        if self.failures > self.retries or not is_retryable(error):
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
