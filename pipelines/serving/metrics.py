"""Numbers for Prometheus. None of them holds what was asked, or who asked it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
_METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})


class Metrics:
    """The metrics of one replica, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        name = "person_search_"
        self._requests = Counter(
            name + "requests", "Answered requests.", ("route", "method", "status"), registry=registry
        )
        self._seconds = Histogram(
            name + "request_seconds",
            "From a request's body to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.ongoing = Gauge(name + "requests_ongoing", "Requests that are being answered.", registry=registry)
        self.refused = Counter(
            name + "refused", "Requests that were refused, by reason.", ("reason",), registry=registry
        )
        self.search_seconds = Histogram(
            name + "search_seconds", "Searches in a thread, encoding included.", buckets=_SECONDS, registry=registry
        )
        self.batch_sentences = Histogram(
            name + "batch_sentences", "Sentences encoded together.", buckets=(1, 2, 4, 8, 16, 32), registry=registry
        )
        self.encode_seconds = Histogram(
            name + "encode_seconds", "One batch of sentences in the text tower.", buckets=_SECONDS, registry=registry
        )
        self.pictures = Gauge(name + "gallery_pictures", "Pictures of the version that answers.", registry=registry)
        self.versions = Counter(
            name + "gallery_versions", "Versions of the gallery that were opened.", registry=registry
        )
        self.failures = Counter(
            name + "gallery_failures", "Attempts to take over a version that failed.", registry=registry
        )

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count an answer; status 0 where the client went before it."""
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all of them in Prometheus's text format."""
        return generate_latest(self.registry)
