"""Stands around the routes: refuses what may not ask, counts and times what may, and sets the headers of every answer."""

import logging
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.access import Access
from pipelines.serving.access_log import AccessLog
from pipelines.serving.answers import Refused
from pipelines.serving.metrics import Metrics
from pipelines.serving.rates import Rates

LOG = logging.getLogger("pipelines.serving")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer, unless it sets its own."""


class AccessMiddleware:
    """An ASGI middleware around the application."""

    def __init__(
        self, app: ASGIApp, access: Access, rates: Rates, metrics: Metrics, access_log: AccessLog | None = None
    ) -> None:
        self.app = app
        self.access, self.rates, self.metrics, self.access_log = access, rates, metrics, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, whole = time.perf_counter(), 0, False

        async def dressed(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)
            whole = message["type"] == "http.response.body" and not message.get("more_body")

        with self.metrics.ongoing.track_inprogress():
            try:
                await self._answer(scope, receive, dressed)
            except Exception:
                if not whole:
                    raise
                LOG.exception("a request to %s failed", _route(scope))  # and Starlette has answered
            finally:
                seconds = time.perf_counter() - begin
                self.metrics.answered(_route(scope), scope["method"], status, seconds)
                if self.access_log is not None:
                    self.access_log.write(scope, _route(scope), status, seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.rates.check(scope)
            self.access.check(scope)
        except Refused as refused:
            if refused.reason == "token":
                self.rates.count_wrong_token(scope)
            self.metrics.refused.labels(refused.reason).inc()
            await refused.answer()(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _route(scope: Scope) -> str:
    """The route's pattern: paths themselves hold ids, and there are as many as clients care to invent."""
    return str(getattr(scope.get("route"), "path", "none"))
