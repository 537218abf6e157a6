"""How often one client may ask."""

import time
from ipaddress import IPv6Address, ip_address, ip_network

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import Scope

from pipelines.serving.answers import Refused
from pipelines.serving.limits import Limits

_FREE = ("/health", "/ready")
"""Asked by machines that watch the service, at any load."""


class Rates:
    """Counts requests of each client in this process, in a sliding minute."""

    def __init__(self, limits: Limits) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._items = {
            "searches": RateLimitItemPerMinute(limits.searches_per_minute),
            "files": RateLimitItemPerMinute(limits.files_per_minute),
            "wrong tokens": RateLimitItemPerMinute(limits.wrong_tokens_per_minute),
        }

    def check(self, scope: Scope) -> None:
        """Count a request. Raises Refused (429) where its client has asked too often."""
        if scope["path"] in _FREE:
            return
        client = client_of(scope)
        if not self._limiter.test(self._items["wrong tokens"], "wrong tokens", client):
            raise self._refused("wrong tokens", client)
        kind = "searches" if scope["method"] == "POST" else "files"
        if not self._limiter.hit(self._items[kind], kind, client):
            raise self._refused(kind, client)

    def count_wrong_token(self, scope: Scope) -> None:
        """Count a wrong token of this client; after some, it must wait."""
        self._limiter.hit(self._items["wrong tokens"], "wrong tokens", client_of(scope))

    def _refused(self, kind: str, client: str) -> Refused:
        item = self._items[kind]
        wait = self._limiter.get_window_stats(item, kind, client).reset_time - time.time()
        return Refused(429, f"too many {kind}: at most {item.amount} per minute are answered", "rate", retry=wait)


def client_of(scope: Scope) -> str:
    """Return whom a request is counted for: its address, or of IPv6 the network, as a client may use any address in that."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else host
