"""What a failure of the tracking store means: one line with what to do, and whether the same command may succeed later."""

import os
from typing import TYPE_CHECKING

from components.errors import ParameterError
from pipelines.errors import InfrastructureError, one_line
from pipelines.redaction import without_secrets

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

_CREDENTIALS = (
    "refuses the credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
)
_RIGHTS = "refuses this user: ask for the right to write"
_OTHER_SERVER = "answers, but not as an MLflow server: check the address"
_SCHEMA = "has the tables of another MLflow: after a backup, `mlflow db upgrade {uri}`, or install that MLflow"
_NO_ADDRESS = "is no address of a store: give sqlite:///FILE or a server's http://"
# Words of an error, and what to do. MLflow has one type of exception for all of them.
_TO_CHANGE = (
    (
        "'active' state",
        "had its experiment deleted: `mlflow experiments restore`, or set MLFLOW_EXPERIMENT_NAME to another",
    ),
    (
        "filesystem tracking backend",
        "is a folder, to which MLflow no longer writes: give sqlite:///FILE or a server's http://",
    ),
    ("unsupported URI", _NO_ADDRESS),
    ("Invalid url", _NO_ADDRESS),
    ("Failed to parse", _NO_ADDRESS),
    ("out-of-date database schema", _SCHEMA),
    ("Can't locate revision", _SCHEMA),
    (
        "already exists\n[SQL: \nCREATE TABLE",
        "has only some of its tables: what made or migrated them was killed. Restore the file, or move it away",
    ),
    ("file is not a database", "is no database: give another file"),
    ("unable to open database file", "cannot be opened: check that its folder is there and may be written"),
    ("readonly database", "cannot be written: check the rights of the file and its folder"),
    ("error code 401", _CREDENTIALS),
    ("UNAUTHENTICATED", _CREDENTIALS),
    ("error code 403", _RIGHTS),
    ("PERMISSION_DENIED", _RIGHTS),
    ("error code 404", _OTHER_SERVER),
    ("not in a valid JSON format", _OTHER_SERVER),
    ("CERTIFICATE_VERIFY_FAILED", "has a certificate that cannot be verified: set MLFLOW_TRACKING_SERVER_CERT_PATH"),
)
_TO_WAIT_FOR = (
    ("ProxyError", "cannot be reached through the proxy {proxy}: start the proxy, or set NO_PROXY to that host"),
    ("database is locked", "is locked by another process: wait for it, or use a server for several machines"),
    ("error responses", "answers that it has failed itself: see its log"),
)
_MODULES = ("mlflow", "sqlalchemy", "sqlite3", "requests", "urllib3")
_REFUSED = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")


def is_missing(error: "MlflowException") -> bool:
    """Return whether the store has answered that it does not know a run. Any other error says nothing about the run."""
    return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")


def is_of_store(error: BaseException) -> bool:
    """Return whether an error is of MLflow, or of the library by which it reaches its store."""
    return type(error).__module__.partition(".")[0] in _MODULES


def explain(uri: str, error: Exception) -> Exception:
    """Return the error of a command that cannot use the store at `uri`.

    ParameterError where the address, the store or the rights have to be changed, InfrastructureError where it may be back later;
    `error` itself if it is not the store's, or the store has refused a wrong request, which is a bug.
    """
    if not (isinstance(error, ConnectionError | TimeoutError) or is_of_store(error)):
        return error
    text, where = str(error), without_secrets(uri)
    proxies = (os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"))
    known = {"uri": where, "proxy": without_secrets(next(filter(None, proxies), "of the environment"))}
    for words, advice in _TO_CHANGE:
        if words in text:
            return ParameterError(
                f"MLFLOW_TRACKING_URI: the MLflow store at {where} {advice.format(**known)}; nothing was run"
            )
    for words, advice in _TO_WAIT_FOR:
        if words in text:
            return InfrastructureError(f"the MLflow server at {where} {advice.format(**known)}; nothing was run")
    if getattr(error, "error_code", None) in _REFUSED:
        return error
    return InfrastructureError(
        f"the MLflow server at {where} does not answer ({one_line(error)}): start it, or set MLFLOW_TRACKING_URI; nothing was run"
    )
