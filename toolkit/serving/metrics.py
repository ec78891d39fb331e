"""Prometheus metrics of a service. The list of all metrics is in docs/serving.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from berxit.runtime import ExitPolicy, Prediction
from berxit.runtime.bundle import Manifest
from berxit.runtime.heads import label_of
from berxit.runtime.monitoring import Monitor
from berxit.runtime.tokenization import Text

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Bounds of the latency histograms, in seconds."""
TEXTS = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts requests, batches and predictions; it is the ``BatchObserver`` of a service."""

    def __init__(
        self, name: str, manifest: Manifest, monitor: Monitor | None, monitored: ExitPolicy, queued: Callable[[], int]
    ) -> None:
        """``monitor`` receives the predictions under the policy ``monitored``. ``queued``: the number of tokens that
        wait."""
        registry = self.registry = CollectorRegistry()
        self._monitor, self._monitored = monitor, monitored
        self._regression = manifest.model.regression
        self._requests = Counter("berxit_requests", "Requests, by status", ["code"], registry=registry)
        self._request_seconds = Histogram(
            "berxit_request_seconds", "From a request's body to its response", buckets=SECONDS, registry=registry
        )
        self._text_seconds = Histogram(
            "berxit_text_seconds", "From a request's body until the text exits", buckets=SECONDS, registry=registry
        )
        self._queue_seconds = Histogram(
            "berxit_queue_seconds", "From a request's body until its batch starts", buckets=SECONDS, registry=registry
        )
        self._exit_layer = Histogram(
            "berxit_exit_layer", "Exit layer of the texts", buckets=manifest.exits, registry=registry
        )
        self._predictions = Counter(
            "berxit_predictions", "Texts, by label and reason of the exit", ["label", "stopped_by"], registry=registry
        )
        self._late = Counter("berxit_late_predictions", "Texts that exited after their deadline", registry=registry)
        self._truncated = Counter("berxit_truncated_texts", "Texts that were truncated", registry=registry)
        self._batch_texts = Histogram("berxit_batch_texts", "Texts of a batch", buckets=TEXTS, registry=registry)
        self._batch_tokens = Histogram(
            "berxit_batch_tokens", "Tokens of a batch, padding included", buckets=TOKENS, registry=registry
        )
        Gauge("berxit_queued_tokens", "Tokens of the texts that wait", registry=registry).set_function(queued)
        Info("berxit_model", "The bundle", registry=registry).info(
            {
                "name": name,
                "digest": manifest.digest,
                "target": manifest.target,
                "precision": manifest.precision,
                "version": version("berxit"),
            }
        )
        if monitor is not None:
            registry.register(_MonitorCollector(monitor))
        ProcessCollector(registry=registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def request(self, code: int, seconds: float | None) -> None:
        """Counts a response. ``seconds``: its latency; None for a request that was refused."""
        self._requests.labels(str(code)).inc()
        if seconds is not None:
            self._request_seconds.observe(seconds)

    def batch(self, texts: int, tokens: int, waited: Sequence[float]) -> None:
        self._batch_texts.observe(texts)
        self._batch_tokens.observe(tokens)
        for seconds in waited:
            self._queue_seconds.observe(seconds)

    def predicted(self, texts: Sequence[Text], predictions: Sequence[Prediction], policy: ExitPolicy) -> None:
        for prediction in predictions:
            self._exit_layer.observe(prediction.exit_layer)
            self._text_seconds.observe(prediction.latency_ms / 1e3)
            labels: tuple[str, ...] = ("" if self._regression else str(prediction.label),)
            if prediction.labels is not None:
                labels = prediction.labels or ("",)
            if prediction.spans is not None:
                labels = tuple(span.label for span in prediction.spans) or ("",)
            if prediction.heads is not None:
                labels = tuple(label_of(name, head.label) for name, head in prediction.heads.items())
            for label in labels:
                self._predictions.labels(label, str(prediction.stopped_by)).inc()
            self._late.inc(bool(prediction.late))
            self._truncated.inc(prediction.truncated)
        if self._monitor is not None and policy == self._monitored:
            hurried = any(prediction.late is not None for prediction in predictions)
            self._monitor.record(texts, predictions, shadow=not hurried)
        elif self._monitor is not None:
            self._monitor.skip(len(predictions))


class _MonitorCollector(Collector):
    """Reads the monitor's report when the metrics are read."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor

    def collect(self) -> Iterator[GaugeMetricFamily]:
        report = self._monitor.report()
        found: dict[str, tuple[str, float | None]] = {
            "berxit_drift": ("1 after the monitor's alarm that the inputs differ from calibration", report.drifted),
            "berxit_monitored_texts": ("Texts that were compared with the calibration data", report.inputs),
            "berxit_average_exit_layer": ("Average exit layer of these texts", report.average_exit_layer),
            "berxit_calibrated_exit_layer": ("The same of the calibration data", report.calibrated_exit_layer),
        }
        if report.shadow is not None:
            found["berxit_disagreement"] = ("Share that differs from full depth", report.shadow.disagreement)
            found["berxit_shadow_runs"] = ("Texts that ran to full depth to measure it", report.shadow.runs)
        for name, (text, value) in found.items():
            if value is not None:
                yield GaugeMetricFamily(name, text, value=float(value))
