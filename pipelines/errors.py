"""Exit codes, the errors that have one, and how an error is reported. (DVC prints a stage's exit code and itself exits 255.)"""

import contextlib
import difflib
import errno
import io
import sys
import traceback
from collections.abc import Iterable, Sequence

from components.errors import DataError, ParameterError
from pipelines.redaction import without_secrets

REPRO_COMMAND = "python -m pipelines repro"
"""The command that brings stages up to date, as errors name it."""
DONE, OTHER, PARAMETERS, DATA, TRY_AGAIN, INTERRUPTED = 0, 1, 2, 3, 75, 130

_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "EREMOTEIO", "ENODEV", "ENXIO", "EROFS", "ESTALE", "ENOSPC", "EDQUOT", "EBUSY", "ENOLCK"),  # storage
        *("ENOMEM", "EAGAIN", "EMFILE", "ENFILE", "ETIMEDOUT"),  # the machine
        *("ENOTCONN", "ESHUTDOWN", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "ENETRESET"),  # the network
    )
    if hasattr(errno, name)
)
"""Numbers of errors of the operating system that do not come from the code or its arguments."""


class InfrastructureError(RuntimeError):
    """A server, a disk or a cluster failed: the same command may succeed later."""


class StageFailedError(RuntimeError):
    """The stage's process failed and has printed why; `code` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with `error`."""
    match error:
        case StageFailedError():
            return error.code
        case ParameterError():
            return PARAMETERS
        case DataError():
            return DATA
        case PermissionError():
            return DATA
        case KeyboardInterrupt():
            return INTERRUPTED
    return TRY_AGAIN if isinstance(error, InfrastructureError) or _is_lost(error) else OTHER


def _is_lost(error: BaseException) -> bool:
    """Return whether storage, memory or a connection was lost. A file that a stage does not find is a bug, say."""
    name, text = type(error).__name__, str(error)
    if isinstance(error, OSError):
        lost = isinstance(error, ConnectionError | TimeoutError) or "Connection" in name or "Timeout" in name
        return lost or error.errno in _PASSING
    # CUDA's error is torch's own class, that of the CPU a plain RuntimeError; torch is not imported for this.
    torch = name == "OutOfMemoryError" or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text)
    return isinstance(error, MemoryError) or torch


def is_expected(error: BaseException) -> bool:
    """Return whether one line explains the error. Any other is a bug here and is shown with its traceback."""
    return exit_code(error) != OTHER or isinstance(error, FloatingPointError | StageFailedError)


def one_line(error: BaseException | str, limit: int = 200) -> str:
    """Return an error as one line of at most `limit` characters, without secrets; of one that holds a traceback, its last line."""
    text = str(error).strip()
    if '\n  File "' in text:
        text = text.splitlines()[-1]
    return without_secrets(" ".join(text.split()))[:limit] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean prepare?` for the nearest of `known`, "" where none is near: the end of an error's line."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def first_of(names: Sequence[str], limit: int) -> str:
    """Return the first `limit` names, and how many more there are: `curate, index and 12 more`."""
    more = len(names) - limit
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:limit])} and {more} more"


def replace_unprintable() -> None:
    """Let this process print "?" for letters that its terminal's encoding does not have, where Python would end in an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Python then asks for a position, which a worker's output no longer has where it was a file before it became a pipe.
            with contextlib.suppress(OSError):
                stream.reconfigure(errors="replace")


def report_error(error: BaseException, about: str = "") -> int:
    """Print why a command ends to stderr, and return its exit code.

    Prints one line without secrets for an expected error, or one per mistake where it lists several; else the traceback (so call it
    in the `except` block). Prints nothing for a StageFailedError: the stage's process has already printed why.
    """
    if not is_expected(error):
        traceback.print_exc()
    elif isinstance(error, KeyboardInterrupt):
        print(str(error) or "interrupted", file=sys.stderr, flush=True)
    elif not isinstance(error, StageFailedError):
        subject = f"{about}: " if about else ""
        for line in without_secrets(str(error)).splitlines() or [type(error).__name__]:
            print(f"error: {subject}{line}", file=sys.stderr, flush=True)
    return exit_code(error)
