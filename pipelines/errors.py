"""How a stage ends, as an exit code (DVC prints it and exits 255 itself)."""

import sys
import traceback

from components.errors import DataError, ParameterError
from pipelines.redaction import without_secrets

DONE, OTHER, PARAMETERS, DATA, TRY_AGAIN, INTERRUPTED = 0, 1, 2, 3, 75, 130


class InfrastructureError(RuntimeError):
    """Something around the work failed (a server, a disk, a cluster): the same command may succeed later."""


class StageFailedError(RuntimeError):
    """The stage's own process failed and has said why; `code` is passed on."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: BaseException) -> int:
    """The exit code for an error that ends a command."""
    match error:
        case StageFailedError():
            return error.code
        case ParameterError():
            return PARAMETERS
        case DataError():
            return DATA
        case InfrastructureError() | OSError():
            return TRY_AGAIN
        case KeyboardInterrupt():
            return INTERRUPTED
    return OTHER


def speaks_for_itself(error: BaseException) -> bool:
    """Whether one line says all; anything else is a bug of ours and deserves its traceback."""
    return exit_code(error) != OTHER or isinstance(error, FloatingPointError | StageFailedError)


def tell(error: BaseException, about: str = "") -> int:
    """Say why a command ends, on stderr, and return its exit code: one line without secrets, or the traceback of a bug of ours.

    To be called where the error is caught. A StageFailedError needs no words: the stage's own process has said why.
    """
    if not speaks_for_itself(error):
        traceback.print_exc()
    elif not isinstance(error, StageFailedError):
        subject = f"{about}: " if about else ""
        print(f"error: {subject}{without_secrets(str(error)) or type(error).__name__}", file=sys.stderr, flush=True)
    return exit_code(error)
