"""Timeouts, in seconds, each set by an environment variable; and the wait for a storage that is away."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

from components.errors import ParameterError
from pipelines.errors import InfrastructureError
from pipelines.locks.retrying import retry

Result = TypeVar("Result")


def lock_timeout() -> float:
    """Return how long to wait for another process that computes the same result."""
    return _seconds("PIPELINES_LOCK_TIMEOUT", 24 * 3600)


def grace_period() -> float:
    """Return how long training may take to save a checkpoint after SIGTERM. Clouds and schedulers allow 30 s or more."""
    return _seconds("PIPELINES_GRACE", 20)


def storage_timeout() -> float:
    """Return how long to wait for the scratch folder when its storage is away."""
    return _seconds("PIPELINES_STORAGE_PATIENCE", 180)


def retry_while_away(action: Callable[[], Result], is_away: Callable[[], bool], what: str, *, timeout: float) -> Result:
    """Return the result of `action`; while `is_away()`, wait and try again. `what` names the storage in messages.

    Raises the OSError of `action` when the storage is there (a full disk, say), InfrastructureError when it stays away.
    """

    def attempt() -> Result:
        try:
            if not is_away():
                return action()
        except OSError:
            if not is_away():
                raise
        raise InfrastructureError(f"{what} has been away for {timeout:.0f} s: bring it back, and run again to resume")

    def warn(error: Exception) -> None:
        print(f"warning: {what} is away; waiting for it, {timeout:.0f} s at most", flush=True)

    return retry(attempt, timeout=timeout, away=lambda error: isinstance(error, InfrastructureError), on_wait=warn)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value <= threading.TIMEOUT_MAX:  # nan is neither; more than some 290 years no wait of Python takes
        raise ParameterError(f"{name} = {text!r}: must be a number of seconds")
    return value
