"""Connections of uvicorn's server in Serve's proxy: their number, the time in which headers must arrive, and how they end."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipelines.serving.limits import LIMITS


class LimitedConnection(H11Protocol):
    """A connection of HTTP/1.1 that is closed when headers do not arrive in time, or when there are too many.

    uvicorn has no such limits: its own timeout is for connections between two requests.
    """

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > LIMITS.connections:
            self._refuse(503, "too many connections; try again", "Retry-After: 1\r\n")
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # answered: the rest is read for the answer's sake alone
            return
        super().data_received(data)
        self._watch()

    def unread(self) -> bool:
        """Whether the client may still send as its connection ends. Beyond twice the limit, refused ones are not waited for."""
        sending = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        refused = LIMITS.connections < len(self.connections) <= 2 * LIMITS.connections
        return sending or refused

    def leave(self) -> None:
        """Tell an application that still reads the body, or writes its answer, that the client is no longer there."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def shutdown(self) -> None:
        if self.transport.is_closing():
            self.transport.close()
        else:
            super().shutdown()

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


class _Transport:
    """A TCP transport whose `close` lets a client that still sends read its answer first.

    Where bytes are unread at a `close`, the system resets the connection, and an answer under way is lost. So only the own
    half is closed, and what arrives is dropped until the client ends its half, for as long as a body may take. A second
    `close`, as when the server ends, waits for nobody.
    """

    def __init__(self, transport: asyncio.Transport, connection: LimitedConnection) -> None:
        self._transport = transport
        self._connection = connection
        self._ended = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._ended or self._transport.is_closing()

    def close(self) -> None:
        waits = not self.is_closing() and self._connection.unread() and self._transport.can_write_eof()
        self._ended = True
        if not waits:
            self._transport.close()
            return
        self._connection.leave()
        self._transport.write_eof()
        self._connection.flow.resume_reading()
        self._connection.loop.call_later(LIMITS.body_seconds, self._transport.close)
