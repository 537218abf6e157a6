"""Answers that are not results: one sentence, as JSON."""

import math
from collections.abc import Mapping

from starlette.responses import JSONResponse

RETRY_SECONDS = 1.0
"""After which a client may try again where nothing tells a better time."""


class Refused(Exception):
    """A request is refused. `sentence` goes to the client, `reason` is the word that metrics count it by."""

    def __init__(self, status: int, sentence: str, reason: str, *, retry: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.reason, self.retry = status, sentence, reason, retry

    def answer(self) -> JSONResponse:
        """Return the answer for the client."""
        return error_answer(self.status, self.sentence, self.retry)


def error_answer(
    status: int, sentence: str, retry: float | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return {"error": sentence}. 429 and 503 always say when to try again, in whole seconds, at least one."""
    more = dict(headers or {})
    if status in (429, 503):
        more.setdefault("Retry-After", str(max(1, math.ceil(RETRY_SECONDS if retry is None else retry))))
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": sentence}, status, headers=more)
