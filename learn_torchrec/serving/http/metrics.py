"""What Prometheus reads."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PREFIX = "learn_torchrec"


class Metrics:
    """The server's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            f"{_PREFIX}_requests",
            "Answered requests by path and status.",
            ("path", "status"),
            registry=self.registry,
        )
        self.seconds = self._histogram("request_seconds", "To an answer.", "path")
        self.batch_seconds = self._histogram("batch_seconds", "Of a batch.", "queue")
        self.batch_size = Histogram(
            f"{_PREFIX}_batch_requests",
            "Requests answered together.",
            ("queue",),
            buckets=_SIZES,
            registry=self.registry,
        )
        self.queued = self._gauge("queued", "Requests that wait, by queue.", "queue")
        self.in_flight = self._gauge("in_flight", "Requests not yet answered.")
        self.new_items = self._gauge("new_items", "Items beside the index.")
        self.loaded = self._gauge("loaded_timestamp", "Of the version in use.")
        self.reloads = Counter(
            f"{_PREFIX}_reloads",
            "Reloads by outcome.",
            ("outcome",),
            registry=self.registry,
        )
        self.missing_events = Counter(
            f"{_PREFIX}_missing_events",
            "Requests answered without the user's recent events.",
            registry=self.registry,
        )

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(
            f"{_PREFIX}_{name}", text, labels, buckets=_SECONDS, registry=self.registry
        )

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry)
