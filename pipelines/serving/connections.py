"""Limits on connections, for uvicorn's server in Serve's proxy: their number, and the time in which the headers must arrive."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipelines.serving.limits import LIMITS


class LimitedConnection(H11Protocol):
    """A connection of HTTP/1.1 that is closed when headers do not arrive in time, or when there are too many.

    uvicorn has no such limits: its own timeout is for connections between two requests.
    """

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > LIMITS.connections:
            self._refuse(503, "too many connections; try again", "Retry-After: 1\r\n")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._forget()
        self._refuse(400, "this is not a request of HTTP/1.1, or its headers are longer than 16 KiB")

    def _watch(self) -> None:
        """Start the clock where a request has begun and its headers are not complete; stop it where they are."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self.waiting is None and not self.timeout_keep_alive_task:
            self.waiting = self.loop.call_later(LIMITS.header_seconds, self._too_slow)

    def _forget(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None

    def _too_slow(self) -> None:
        self.waiting = None
        self._refuse(408, f"the headers did not arrive within {LIMITS.header_seconds:g} seconds")

    def _refuse(self, status: int, sentence: str, more: str = "") -> None:
        if self.transport.is_closing():
            return
        body = json.dumps({"error": sentence})
        self.transport.write(
            f"HTTP/1.1 {status} Refused\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}"
            f"Connection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()
