"""Who may ask: by which address a browser came, and the token."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from pipelines.serving.answers import Refused

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")
"""To listen on all addresses of this machine; no name to open in a browser."""
COOKIE = "person_search"
MIN_TOKEN = 16
"""Characters. `openssl rand -hex 32` makes 64."""
_OPEN = ("/", "/health", "/ready")
"""The page itself holds no data; it asks for the token when its first request is refused."""


@dataclass(frozen=True)
class Access:
    """hosts: names by which the service may be called, none for any. digest: SHA-256 of the token, None where none is needed."""

    hosts: Sequence[str] = LOOPBACK_NAMES
    digest: str | None = None

    def check(self, scope: Scope) -> None:
        """Raise Refused: 403 for another host or from another site, 401 without the token where one is needed."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.hosts and host_name(host) not in self.hosts:
            raise Refused(
                403,
                "this service is not called by that name; use the address that it printed, or start it with --allowed-host",
                "host",
            )
        origin = headers.get("origin")
        if headers.get("sec-fetch-site") == "cross-site" and scope["path"] != "/":
            raise Refused(403, "requests of other sites are not answered", "origin")
        if origin is not None and urlsplit_host(origin) != host.lower():
            raise Refused(403, "requests of other sites are not answered", "origin")
        if self.digest and scope["path"] == "/":
            given = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True).get("token")
            if given is not None and not self.is_token(given[-1]):
                raise Refused(401, "the token in this address is wrong", "token")
        if self.digest and scope["path"] not in _OPEN and not scope["path"].startswith("/static/"):
            self.require_token(headers)

    def require_token(self, headers: Headers) -> None:
        """Raise Refused (401) unless the headers hold the token, or the cookie that stands for it."""
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.is_token(token.strip()):
            return
        if kind == "" and self.digest and hmac.compare_digest(_cookie(headers).encode(), self.cookie().encode()):
            return
        if kind or _cookie(headers):
            raise Refused(401, "the token is wrong; send the one that the service was started with", "token")
        raise Refused(
            401, "a token is needed: send `Authorization: Bearer TOKEN`, or open /?token=TOKEN once", "no token"
        )

    def is_token(self, token: str) -> bool:
        """Return whether `token` is the service's, in a time that does not depend on how much of it is right."""
        return self.digest is not None and hmac.compare_digest(token_digest(token), self.digest)

    def cookie(self) -> str:
        """Return what the cookie of the page holds: it follows from the token, and the token does not follow from it."""
        return hmac.new((self.digest or "").encode(), b"the page", hashlib.sha256).hexdigest()


def token_digest(token: str) -> str:
    """Return the SHA-256 of a token, which is all that the service keeps of it."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def host_name(host: str) -> str:
    """Return the name in a Host header, in lower case: without the port, without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def is_host_name(text: str) -> bool:
    """Return whether `text` is as `host_name` returns it, or in upper case: without a port and brackets."""
    return host_name(f"[{text}]" if text.count(":") > 1 else text) == text.lower()


def urlsplit_host(origin: str) -> str:
    """Return host and port of an Origin header; "" for "null" and for what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
