"""A log of answered requests, which is off unless a file is named. What was asked is in it only where that is chosen too."""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from starlette.types import Scope

from pipelines.serving.rates import client_of

_QUERY = "pipelines.query"


class AccessLog:
    """Appends one line of JSON per answered request to a file; a file that was moved away, as logrotate does, is made again.

    time (UTC), client, method, route (a pattern, without ids), status (0: the client went before the answer), seconds; with
    `queries` also the query of a search: sentences, like, where, k, and whether a picture was sent.
    """

    def __init__(self, file: Path, *, queries: bool = False) -> None:
        self.queries = queries
        self._handler = WatchedFileHandler(file, encoding="utf-8")

    def note_query(self, scope: Scope, query: Mapping[str, Any]) -> None:
        """Remember what this request asks, for its line."""
        if self.queries:
            scope[_QUERY] = {name: value for name, value in query.items() if value}

    def write(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        """Append the line of a request. Where the disk is full it is lost, and standard error says so once per request."""
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client_of(scope),
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        if _QUERY in scope:
            line["query"] = scope[_QUERY]
        text = json.dumps(line, ensure_ascii=False)
        self._handler.handle(logging.LogRecord("access", logging.INFO, "", 0, text, None, None))


def require_writable(file: Path) -> None:
    """Raise OSError unless lines can be appended to the file, which is made."""
    with open(file, "a", encoding="utf-8"):
        pass
