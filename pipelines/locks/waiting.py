"""How long this project waits for what: every wait has an end. In seconds, each with an environment variable of its own."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

from components.errors import ParameterError
from pipelines.errors import InfrastructureError

Result = TypeVar("Result")


def lock_timeout() -> float:
    """For another process that computes the same result."""
    return _seconds("PIPELINES_LOCK_TIMEOUT", 24 * 3600)


def grace_period() -> float:
    """For a training process to save a checkpoint and go, after SIGTERM. Clouds and schedulers give 30 s or more."""
    return _seconds("PIPELINES_GRACE", 20)


def storage_timeout() -> float:
    """For the scratch folder to come back when its storage is away."""
    return _seconds("PIPELINES_STORAGE_PATIENCE", 180)


def retry_while_away(action: Callable[[], Result], away: Callable[[], bool], what: str, *, timeout: float) -> Result:
    """What `action` returns; while `away()` says that the storage is gone, it is waited for and tried again.

    Raises the action's own OSError when the storage is there (a full disk, say), InfrastructureError when it stays away.
    """
    deadline = time.monotonic() + timeout
    said = False
    while True:
        try:
            if not away():
                return action()
        except OSError:
            if not away():
                raise
        if time.monotonic() > deadline:
            raise InfrastructureError(
                f"{what} has been away for {timeout:.0f} s: bring it back, and run again to go on"
            )
        if not said:
            said = True
            print(f"warning: {what} is away; waiting for it, {timeout:.0f} s at most", flush=True)
        time.sleep(0.5)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if value < 0:
        raise ParameterError(f"{name} = {text!r}: must be a number of seconds")
    return value
