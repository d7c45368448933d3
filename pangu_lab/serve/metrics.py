"""The server's metrics, in Prometheus' text format at ``/metrics``. They contain nothing of any prompt."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from pangu_lab.serve.request import ServedRequest
from pangu_lab.serve.scheduler import Scheduler

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
ROUTES = ("/v1/completions", "/v1/models", "/model/pangu/version/0:predict", "/query", "/metrics")


class Metrics:
    """The numbers of one scheduler and of the HTTP routes before it."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "pangu_http_requests", "Answers by route and status", ["route", "status"], registry=self.registry
        )
        self._first = Histogram(
            "pangu_time_to_first_token_seconds",
            "From submission, waiting included",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._whole = Histogram(
            "pangu_request_seconds", "From submission to the end", buckets=SECONDS, registry=self.registry
        )
        self._step = Histogram(
            "pangu_decode_step_seconds", "One token of every running sequence", buckets=SECONDS, registry=self.registry
        )
        self._batch = Histogram(
            "pangu_decode_batch_size",
            "Sequences in a decode step",
            buckets=(1, 2, 4, 6, 8, 10, 12, 16),
            registry=self.registry,
        )
        self.registry.register(_OfScheduler(scheduler))
        scheduler.on_step, scheduler.on_end = self._stepped, self._ended

    def answered(self, route: str, status: int) -> None:
        """Count one answer; unknown routes share one series, or a client could create a million."""
        self._requests.labels(route if route in ROUTES else "other", str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _stepped(self, batch: int, seconds: float) -> None:
        self._step.observe(seconds)
        self._batch.observe(batch)

    def _ended(self, request: ServedRequest) -> None:
        if request.first_token is not None:
            self._first.observe(request.first_token - request.submitted)
        self._whole.observe(request.ended_at - request.submitted)


class _OfScheduler:
    """Reads the scheduler's own counts on every scrape."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self):
        counts, pool = self.scheduler.counts, self.scheduler.engine.runner.pool
        for name, text, value in (
            ("ready", "1 while requests are taken", float(self.scheduler.ready.is_set())),
            ("queue_length", "Prompts that wait", self.scheduler.waiting),
            ("running_sequences", "Sequences in the batch", self.scheduler.running),
            ("cache_slots", "Slots of the key-value cache, one a position", pool.slots),
            ("cache_slots_used", "Of these, taken", pool.slots - pool.free),
        ):
            yield GaugeMetricFamily(f"pangu_{name}", text, value=value)
        for name, text, value in (
            ("prompt_tokens", "Tokens read", counts.prompt_tokens),
            ("generated_tokens", "Tokens written", counts.new_tokens),
            ("decode_steps", "Steps made", counts.steps),
            ("cancelled_requests", "Ended by their client", counts.cancelled),
            ("late_requests", "Ended by the clock", counts.late),
            ("failed_requests", "Ended with nothing to choose from", counts.failed),
        ):
            yield CounterMetricFamily(f"pangu_{name}", text, value=value)
