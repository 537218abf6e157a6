"""What a request must be before anything works on it: a whole body of bounded size, in bounded time, with known headers.

It stands in Serve's proxy, so that a slow sender occupies no replica, and again around the application, for where no proxy is.
"""

import asyncio
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.answers import Refused, error_answer
from pipelines.serving.limits import LIMITS, Limits

UPLOAD_PATH = "/api/search/picture"
KEPT_HEADERS = frozenset(
    b"accept authorization content-length content-type cookie host if-none-match origin sec-fetch-site user-agent".split()
)
"""All others are dropped: Serve's proxy obeys some that lift its time limit or choose a replica."""
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)


class BodyMiddleware:
    """Reads the whole body of a request, then lets the application answer, in JSON even where Serve itself refuses."""

    def __init__(self, app: ASGIApp, limits: Limits = LIMITS) -> None:
        self.app = app
        self.limits = limits
        self.received = 0
        """Bytes of all bodies that are being received."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        answer = _Answer(send, self.limits.answer_seconds)
        try:
            self._require_plain_headers(scope)
            body = await self._body(scope, receive)
        except Refused as refused:
            response = refused.answer()
            response.headers["Connection"] = "close"  # the rest of the body is not read: `connections` drops it
            await response(scope, receive, answer)
            return
        if body is None:  # the client has gone
            return
        headers = [(name, value) for name, value in scope["headers"] if name in KEPT_HEADERS]
        await self.app({**scope, "headers": headers}, _replayed(body, receive), answer)
        if not answer.started:
            sentence = "the process that worked on this request has ended; try again"
            await error_answer(503, sentence)(scope, receive, answer)

    def _require_plain_headers(self, scope: Scope) -> None:
        names = [name for name, _ in scope["headers"]]
        sizes = sum(len(name) + len(value) for name, value in scope["headers"])
        if sizes + len(scope.get("raw_path", b"")) + len(scope.get("query_string", b"")) > self.limits.header_bytes:
            raise Refused(431, f"address and headers are too long: at most {self.limits.header_bytes} bytes", "headers")
        if names.count(b"host") != 1:
            raise Refused(400, "a request has exactly one Host header", "headers")
        if any(names.count(name) > 1 for name in (b"authorization", b"content-type", b"content-length", b"origin")):
            raise Refused(400, "Authorization, Content-Type, Content-Length and Origin may be given once", "headers")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise Refused(400, "a body has a Content-Length or a Transfer-Encoding, not both", "headers")
        encoding = dict(scope["headers"]).get(b"content-encoding", b"identity")
        if encoding.strip().lower() != b"identity":
            raise Refused(415, "compressed bodies are not read; send it without Content-Encoding", "encoding")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None where the client went before its end."""
        allowed = self.limits.upload_bytes if scope["path"] == UPLOAD_PATH else self.limits.json_bytes
        too_large = Refused(413, f"the body is too large: at most {allowed} bytes are read here", "size")
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated[:20]) > allowed:
            raise too_large
        parts: list[bytes] = []
        taken = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    more = message.get("more_body", False)
                    part = message.get("body", b"")
                    taken += len(part)
                    self.received += len(part)
                    if taken > allowed:
                        raise too_large
                    parts.append(part)
                    if self.received > self.limits.received_bytes:
                        raise Refused(503, "too many uploads at the same time; try again", "busy")
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds", "slow") from None
        finally:
            self.received -= taken
        body = b"".join(parts)
        if _is_json(scope) and nesting(body) > self.limits.json_depth:
            raise Refused(400, f"the JSON is nested more than {self.limits.json_depth} levels deep", "depth")
        return body


class _Answer:
    """Passes an answer on. An error of Serve itself, which is plain text, becomes JSON and says when to try again."""

    def __init__(self, send: Send, seconds: float) -> None:
        self.send = send
        self.seconds = seconds
        self.started = False
        self._replaced: int | None = None
        self._text = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message["headers"]).get(b"content-type", b"")
            if message["status"] >= 400 and not kind.startswith(b"application/json"):
                self._replaced = 503 if message["status"] == 408 else message["status"]  # 408: Serve's own time limit
                return
        elif self._replaced is not None and message["type"] == "http.response.body":
            self._text += message.get("body", b"")
            if message.get("more_body"):
                return
            status, self._replaced = self._replaced, None
            await error_answer(status, _sentence(status, self._text))({"type": "http"}, _nothing, self)
            return
        self.started = True
        # A client that takes nothing is cut off: uvicorn closes a connection whose answer ends in an error.
        async with asyncio.timeout(self.seconds):
            await self.send(message)


def nesting(body: bytes) -> int:
    """Return how deep brackets and braces are nested in JSON, outside its strings."""
    deepest = depth = 0
    for letter in _STRINGS.sub(b"", body):
        if letter in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in b"]}":
            depth -= 1
    return deepest


def _is_json(scope: Scope) -> bool:
    return dict(scope["headers"]).get(b"content-type", b"").lower().startswith(b"application/json")


def _sentence(status: int, text: bytes) -> str:
    if status == 503:
        return "the service has more requests than it can answer, or is just starting; try again"
    if status >= 500:
        return "the request failed; the log of the service says why"
    return " ".join(text.decode(errors="replace").split())[:200] or "refused"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body at once, and then waits for the client to go, as before."""
    first = True

    async def replay() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replay


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
