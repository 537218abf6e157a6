"""How a stage ends, as an exit code (DVC prints it and exits 255 itself)."""

from components.errors import DataError, ParameterError

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
