"""The body middleware and the connections: bodies that are too large, too slow or broken off; Serve's own errors; slow headers."""

import asyncio
import json
import re
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import uvicorn
from processes import wait_until
from starlette.responses import JSONResponse, PlainTextResponse

from pipelines.serving import connections
from pipelines.serving.body_middleware import BodyMiddleware, nesting
from pipelines.serving.limits import LIMITS

HOST = (b"host", b"localhost")


def passed(app, parts, *, headers=(HOST,), limits=LIMITS, path="/api/search", pause=0.0):
    """Send a request in `parts` through the middleware; returns status, headers and body, None for a client that got no answer."""
    sent: list[dict] = []
    waiting = list(parts)

    async def receive():
        if not waiting:
            await asyncio.sleep(3600)
        await asyncio.sleep(pause)
        part = waiting.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers), "query_string": b""}
    middleware = BodyMiddleware(app, limits)
    asyncio.run(middleware(scope, receive, send))
    assert middleware.received == 0
    if not sent:
        return None
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(message.get("body", b"") for message in sent[1:])


async def echo(scope, receive, send):
    message = await receive()
    assert message["more_body"] is False
    await JSONResponse([message["body"].decode(), sorted(name.decode() for name, _ in scope["headers"])])(
        scope, receive, send
    )


def test_a_body_in_parts_arrives_whole():
    status, _, body = passed(echo, [b"a", b"b", b"", b"c"])
    assert (status, json.loads(body)[0]) == (200, "abc")


def test_headers_that_serves_proxy_would_obey_are_dropped():
    evil = [
        (b"x-request-timeout-seconds", b"-1"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"\xff"),
        (b"x-session-id", b"a"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-request-id", b"chosen"),
    ]
    _, _, body = passed(echo, [b""], headers=[HOST, *evil, (b"accept", b"*/*")])
    assert json.loads(body)[1] == ["accept", "host"]


@pytest.mark.parametrize(
    ("headers", "parts", "status"),
    [
        ([HOST, (b"content-length", b"999999999")], [b""], 413),
        ([HOST, (b"content-length", b"9" * 5000)], [b""], 413),
        ([HOST], [b"x" * 40_000, b"x" * 40_000, b""], 413),
        ([], [b""], 400),
        ([HOST, HOST], [b""], 400),
        ([HOST, (b"authorization", b"a"), (b"authorization", b"b")], [b""], 400),
        ([HOST, (b"content-encoding", b"gzip")], [b""], 415),
        ([HOST, (b"content-type", b"application/json")], [b"[" * 9], 400),
    ],
)
def test_what_no_application_should_see_is_refused(headers, parts, status):
    answered, told, body = passed(echo, parts, headers=headers)
    assert answered == status
    assert set(json.loads(body)) == {"error"}
    assert told[b"connection"] == b"close"


def test_a_slow_sender_is_told_and_one_that_goes_is_forgotten():
    limits = replace(LIMITS, body_seconds=0.1)
    status, _, body = passed(echo, [b"a"] * 50, limits=limits, pause=0.01)
    assert status == 408
    assert "within 0.1 seconds" in json.loads(body)["error"]
    assert passed(echo, [b"a", None]) is None


def test_bodies_together_have_a_limit():
    status, told, _ = passed(echo, [b"x" * 100, b""], limits=replace(LIMITS, received_bytes=50))
    assert (status, told[b"retry-after"]) == (503, b"1")


def test_an_error_of_serve_itself_becomes_json_that_says_when_to_try_again():
    for status, expected in ((503, 503), (408, 503), (500, 500), (404, 404)):
        answered, told, body = passed(PlainTextResponse("Request abc timed out", status), [b""])
        assert (answered, set(json.loads(body))) == (expected, {"error"})
        assert (b"retry-after" in told) == (expected == 503)
    chosen = PlainTextResponse("busy", 503, headers={"retry-after": "7"})
    assert passed(chosen, [b""])[0] == 503


async def dies(scope, receive, send):
    """As Serve's proxy, when the replica was lost."""


def test_a_lost_replica_is_an_answer_too():
    status, told, _ = passed(dies, [b""])
    assert (status, told[b"retry-after"]) == (503, b"1")


def test_a_client_that_takes_nothing_is_cut_off():
    async def stuck(message):
        await asyncio.sleep(3600)

    async def nothing():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [HOST]}
    with pytest.raises(TimeoutError):
        asyncio.run(BodyMiddleware(PlainTextResponse("x"), replace(LIMITS, answer_seconds=0.05))(scope, nothing, stuck))


def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(BodyMiddleware(echo)({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1000}]


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"", 0),
        (b"1", 0),
        (b"[]", 1),
        (b'{"a": [1, {"b": []}]}', 4),
        (b'["[[[[", "\\"[[["]', 1),
        (b'"[[[', 0),
        (b"]]][", 1),
    ],
)
def test_nesting_is_counted_outside_of_strings(body, depth):
    assert nesting(body) == max(depth, 0) or body == b"]]]["


@contextmanager
def serving():
    """A uvicorn whose connections are limited, as in Serve's proxy; headers have half a second, and there may be three."""
    limits, connections.LIMITS = connections.LIMITS, replace(LIMITS, header_seconds=0.5, connections=3)
    config = uvicorn.Config(BodyMiddleware(echo), http=connections.LimitedConnection, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(server=server, port=listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(20)
        connections.LIMITS = limits
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def port():
    with serving() as service:
        yield service.port


def answered(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    """What comes back for bytes that are sent as they are, with a pause (seconds) after each part, to the connection's end."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        for part in parts:
            client.sendall(part)
            time.sleep(pause)
        received = b""
        while more := client.recv(65536):
            received += more
        return received


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_headers_that_do_not_arrive_end_the_connection(port, sent):
    received = answered(port, sent)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'{"error": "the headers did not arrive within 0.5 seconds"}' in received


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_json_and_the_connection_ends(port, sent):
    received = answered(port, sent)
    assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ")), received
    assert len(re.findall(rb"HTTP/1.1 \d", received)) == 1, "no second request is read out of the first"
    assert re.search(rb'\{"error": ?"', received)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000, b"400"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 8000000\r\n\r\n", b"400"),
    ],
)
def test_a_refused_client_that_is_still_sending_sees_its_answer(port, head, status):
    """Bytes that are unread when a connection is closed reset it, and the answer is lost with it."""
    received = answered(port, head, *[b"x" * 100_000] * 10, pause=0.02)
    assert received.startswith(b"HTTP/1.1 " + status)


def test_a_body_that_is_no_http_leaves_no_request_waiting(caplog):
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"
    with serving() as service, socket.create_connection(("127.0.0.1", service.port), timeout=20) as client:
        client.sendall(head)
        wait_until(lambda: service.server.server_state.tasks, timeout=10)
        client.sendall(b"no length\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        wait_until(lambda: not service.server.server_state.tasks, timeout=10)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 8000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nno length\r\n"]
)
def test_the_server_ends_beside_a_client_that_was_refused_and_stays(rest):
    with socket.socket() as client:
        client.settimeout(20)
        with serving() as service:  # which fails where the server is still there after 20 seconds
            client.connect(("127.0.0.1", service.port))
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\n" + rest)
            assert client.recv(65536).startswith(b"HTTP/1.1 4")


def test_one_that_sends_for_ever_is_cut_off(port, monkeypatch):
    monkeypatch.setattr(connections, "LIMITS", replace(connections.LIMITS, body_seconds=0.3))
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000000000\r\n\r\n"
    with pytest.raises(ConnectionError):
        answered(port, head, *[b"x" * 1000] * 3000, pause=0.001)


def test_connections_beyond_the_limit_are_refused_and_the_others_live(port):
    held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    try:
        refused = answered(port)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 1" in refused
        held[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert held[0].recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for client in held:
            client.close()


def test_a_connection_is_used_again(port):
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert answered(port, request, last).count(b"HTTP/1.1 200 ") == 2
