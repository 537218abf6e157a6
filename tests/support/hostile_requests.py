"""Requests that mean harm: an endless, seeded stream of them, and what must hold for every answer."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from PIL import Image

BOUNDARY = "frontier"


@dataclass(frozen=True)
class Hostile:
    """A request, and the kind of harm that it means."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def hostile_requests(seed: int, known: list[str]) -> Iterator[Hostile]:
    """Yield requests of all kinds in turn. `known`: ids of pictures that exist, so that some of them get far."""
    draw = random.Random(seed)
    while True:
        for make in KINDS:
            yield make(draw, known)


def wrong_in(status: int, headers: dict[str, str], body: bytes, secrets: list[bytes]) -> str | None:
    """Return what is wrong with an answer, None where nothing is."""
    low = {name.lower(): value for name, value in headers.items()}
    if status >= 500 and status != 503:
        return f"{status}: {body[:200]!r}"
    if status in (429, 503) and not low.get("retry-after", "").isdigit():
        return f"{status} without Retry-After"
    if any(secret in body for secret in secrets):
        return "something outside of the gallery was served"
    if status >= 400:
        try:
            answer = json.loads(body)
        except ValueError:
            return f"{status} that is not JSON: {body[:200]!r}"
        if not isinstance(answer, dict) or list(answer) != ["error"] or not answer["error"] or "\n" in answer["error"]:
            return f"{status} that is not one sentence: {body[:200]!r}"
        if "Traceback" in answer["error"] or ".py" in answer["error"]:
            return f"{status} that shows code: {answer['error']}"
    return None


def _json(kind: str, body: object, path: str = "/api/search") -> Hostile:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Hostile(kind, "POST", path, content, {"Content-Type": "application/json"})


def _oversized(draw: random.Random, known: list[str]) -> Hostile:
    size = draw.choice((65_000, 66_000, 200_000, 1_000_000))
    return _json("oversized", {"sentences": ["x" * size]})


def _many(draw: random.Random, known: list[str]) -> Hostile:
    count = draw.choice((9, 50, 5000))
    return _json(
        "many", draw.choice(({"sentences": ["a"] * count}, {"sentences": ["a"], "where": ["camera=1"] * count}))
    )


def _deep(draw: random.Random, known: list[str]) -> Hostile:
    depth = draw.choice((9, 500, 1500, 4000))
    opening, closing = draw.choice(((b"[", b"]"), (b'{"sentences":', b"}")))
    return _json("deep", opening * depth + draw.choice((b"", b"1" + closing * depth)))


def _malformed(draw: random.Random, known: list[str]) -> Hostile:
    whole = bytearray(json.dumps({"sentences": ["a woman"], "k": 5, "where": ["camera=1"], "rerank": False}).encode())
    for _ in range(draw.randint(1, 4)):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
    return _json("malformed", bytes(whole[: draw.randint(0, len(whole))]))


def _odd_values(draw: random.Random, known: list[str]) -> Hostile:
    value = draw.choice(
        (None, True, -1, 0, 1e308, 10**30, "5", "\ud800", [], {}, "", " ", "\x00", "\u202e", "é" * 1000, 3.7)
    )
    name = draw.choice(("sentences", "like", "k", "where", "rerank", "weight", "exact", "__class__"))
    body = {"sentences": ["a woman"], name: draw.choice((value, [value], {"a": value}))}
    return _json(
        "odd values", json.dumps(body).encode().replace(b"1e+308", draw.choice((b"NaN", b"Infinity", b"1e999")))
    )


def _filters(draw: random.Random, known: list[str]) -> Hostile:
    column = draw.choice(
        ("camera", "file", "files", "sha256", "identity", "seen", "", "__", "camera camera", "caption", "'")
    )
    operator = draw.choice(("=", "!=", ">=", "~", "!~", "<", "", "==", "=~", "; drop"))
    value = draw.choice(
        ("1", "", "(a+)+$", "%s%n", "../..", "9" * 190, "nan", "\u0000", "1|2|" * 40, "2020-13-45", "' or 1=1")
    )
    return _json("filters", {"sentences": ["a woman"], "where": [column + operator + value]})


def _sentences(draw: random.Random, known: list[str]) -> Hostile:
    letters = draw.choice(
        ("a ", "\U0001f469\u200d", "<|endoftext|> ", "<script>alert(1)</script>", "\u0301", "漢字", "{{7*7}}", "%00")
    )
    return _json("sentences", {"sentences": [(letters * 1000)[: draw.choice((1, 80, 999, 1000, 1001))]], "k": 200})


def _paths(draw: random.Random, known: list[str]) -> Hostile:
    trick = draw.choice(
        (
            "../" * 8 + "etc/passwd",
            "..%2f" * 8 + "etc%2fpasswd",
            "%2e%2e/" * 8 + "etc/passwd",
            "..%252f..%252fcanary.txt",
            "....//....//canary.txt",
            "%00",
            "canary.txt",
            "secret-name-0.png",
            "/etc/passwd",
            "file:///etc/passwd",
            "C:%5cWindows%5cwin.ini",
            "%c0%ae%c0%ae/%c0%ae%c0%ae/canary.txt",
            "%ff%fe",
            "a" * 3000,
            "current",
            draw.choice(known)
            + draw.choice(("/..", "%00.png", "/thumbnail/..", "?file=/etc/passwd", ";a", "%0d%0aX:%20y", "/")),
        )
    )
    place = draw.choice(("/api/pictures/", "/static/", "/", "/api/pictures/../", "/static/../page/"))
    return Hostile(
        "paths", draw.choice(("GET", "GET", "HEAD")), place + trick + draw.choice(("", "/thumbnail", "/related?k=3"))
    )


def _methods(draw: random.Random, known: list[str]) -> Hostile:
    method = draw.choice(("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "GET", "POST"))
    return Hostile(
        "methods", method, draw.choice(("/", "/api/search", "/api/gallery", "/metrics", "/-/routes", "/nothing"))
    )


def _headers(draw: random.Random, known: list[str]) -> Hostile:
    name, value = draw.choice(
        (
            ("Host", "attacker.example"),
            ("Host", ""),
            ("Host", "a" * 300),
            ("Origin", "http://attacker.example"),
            ("Origin", "http://["),
            ("Cookie", "person_search=" + "\x01" * 3),
            ("Cookie", "=;=;" * 500),
            ("Authorization", "Bearer " + "x" * 5000),
            ("Authorization", "Negotiate"),
            ("Content-Type", "application/json; charset=utf-7"),
            ("Content-Type", "multipart/form-data"),
            ("Content-Type", "multipart/form-data; boundary=" + "b" * 300),
            ("Content-Type", "text/xml"),
            ("Content-Encoding", "gzip"),
            ("X-Request-Timeout-Seconds", "-1"),
            ("X-Request-Disconnect-Disabled", "?1"),
            ("serve_multiplexed_model_id", "x" * 2000),
            ("X-Session-Id", "1"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("Accept", "x/" * 3000),
            ("If-None-Match", '"' * 3000),
            ("Range", "bytes=0-,0-,0-,0-"),
            ("Expect", "100-continue"),
            ("X-Long", "x" * 15_000),
        )
    )
    body = json.dumps({"sentences": ["a woman"]}).encode()
    return Hostile("headers", "POST", "/api/search", body, {"Content-Type": "application/json", name: value})


def _ids(draw: random.Random, known: list[str]) -> Hostile:
    other = "".join(draw.choice("0123456789abcdef") for _ in range(draw.choice((1, 15, 16, 17, 64, 65))))
    query = draw.choice(
        ("", "?k=0", "?k=-1", "?k=201", "?k=9" + "9" * 400, "?k=1&k=2", "?k=a", "?k[]=1", "?" + "a=1&" * 900)
    )
    return Hostile("ids", "GET", f"/api/pictures/{draw.choice((other, draw.choice(known)))}/related{query}")


def _words(draw: random.Random, known: list[str]) -> Hostile:
    sentence = draw.choice(("a " * 499, "x" * 1000, "\u200b", "a woman", ""))
    return _json(
        "words", {"sentence": sentence, "id": draw.choice((draw.choice(known), "../x", "0" * 16))}, "/api/words"
    )


def png(width: int, height: int, content: bytes = b"") -> bytes:
    """A PNG whose header may lie about what follows it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def _bomb_of_text() -> bytes:
    """A PNG whose compressed comment is 8 MB."""
    data = b"Comment\x00\x00" + zlib.compress(b"\x00" * 8_000_000, 9)
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    whole = png(8, 8, zlib.compress(b"\x00" * 72))
    return whole[:33] + chunk + whole[33:]


def _real(kind: str, size: tuple[int, int] = (30, 60)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(file, kind)
    return file.getvalue()


_PICTURES: list[Callable[[], bytes]] = [
    lambda: b"",
    lambda: png(60_000, 60_000, zlib.compress(b"\x00" * 1_000_000, 9)),
    lambda: png(2**31 - 1, 2**31 - 1),
    lambda: png(0, 0),
    lambda: png(6000, 6000, b"not compressed"),
    lambda: png(6000, 6000, zlib.compress(b"\x00" * 36_006_000, 9)),  # allowed, and large
    lambda: png(1, 30_000_000, b""),
    _bomb_of_text,
    lambda: _real("JPEG")[:200],
    lambda: _real("JPEG") + b"<script>" * 1000,
    lambda: _real("GIF"),
    lambda: _real("TIFF"),
    lambda: _real("ICO", (16, 16)),
    lambda: b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n",
    lambda: b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
    lambda: b"BM" + b"\xff" * 60,
    lambda: b"II*\x00" + b"\xff" * 100,
    lambda: b"\xff\xd8\xff\xe1\xff\xffExif\x00\x00" + b"\xff" * 300,
]
_MADE: dict[int, bytes] = {}


def _picture(draw: random.Random) -> bytes:
    number = draw.randrange(len(_PICTURES) + 4)
    if number >= len(_PICTURES):  # a real one, broken somewhere
        broken = bytearray(_real(("JPEG", "PNG", "WEBP", "BMP")[number - len(_PICTURES)]))
        for _ in range(draw.randint(1, 20)):
            broken[draw.randrange(len(broken))] = draw.randrange(256)
        return bytes(broken)
    return _MADE.setdefault(number, _PICTURES[number]())


def _uploads(draw: random.Random, known: list[str]) -> Hostile:
    name = draw.choice(("x.png\"; filename*=utf-8''..%2f..%2fetc", "../../etc/cron.d/x", "a" * 500, "", "\x01.jpg"))
    kind = draw.choice(("image/png", "text/html", "application/x-python", "image/png\r\nX: y", ""))
    parts = [f'Content-Disposition: form-data; name="picture"; filename="{name}"\r\nContent-Type: {kind}'.encode()]
    contents = [_picture(draw)]
    for _ in range(draw.choice((0, 0, 1, 20))):
        field_name = draw.choice(("sentence", "k", "where", "weight", "rerank", "other", "picture"))
        parts.append(f'Content-Disposition: form-data; name="{field_name}"'.encode())
        contents.append(draw.choice((b"a woman", b"5", b"\xff\xfe", b"x" * 9000, b"", b"-1", b"camera=1")))
    marked = b"".join(
        f"--{BOUNDARY}\r\n".encode() + head + b"\r\n\r\n" + content + b"\r\n"
        for head, content in zip(parts, contents, strict=True)
    )
    body = marked + draw.choice((f"--{BOUNDARY}--\r\n".encode(), b"", b"--", f"--{BOUNDARY}\r\n".encode()))
    if draw.random() < 0.1:
        body = body[: draw.randrange(len(body))]
    return Hostile(
        "uploads", "POST", "/api/search/picture", body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    )


def _harmless(draw: random.Random, known: list[str]) -> Hostile:
    """So that the service is seen to work in between."""
    return _json("harmless", {"sentences": ["a woman in a red coat"], "k": 3})


KINDS: list[Callable[[random.Random, list[str]], Hostile]] = [
    _oversized,
    _many,
    _deep,
    _malformed,
    _odd_values,
    _filters,
    _sentences,
    _paths,
    _methods,
    _headers,
    _ids,
    _words,
    _uploads,
    _uploads,
    _harmless,
]
