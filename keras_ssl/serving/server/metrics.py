"""Prometheus metrics with the names, labels and buckets of TensorFlow Serving."""

import bisect
import itertools
import re
import threading

import prometheus_client
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

PREFIX = ":tensorflow:serving:"
LOAD_ATTEMPTS = ":tensorflow:cc:saved_model:load_attempt_count"
# Upper bounds of the buckets, in microseconds.
LATENCY_BOUNDS = [10 * 1.8**i for i in range(33)]
QUEUING_BOUNDS = [100 * 1.2**i for i in range(52)]


class _Histogram:
    """A histogram in microseconds for each combination of label values."""

    def __init__(self, name, documentation, labels, bounds):
        self.name, self.documentation, self.labels = name, documentation, labels
        self.bounds, self.cells = bounds, {}

    def observe(self, labels, seconds):
        value = seconds * 1e6
        cell = self.cells.get(labels)
        if cell is None:
            cell = self.cells[labels] = [[0] * (len(self.bounds) + 1), 0.0]
        cell[0][bisect.bisect_left(self.bounds, value)] += 1
        cell[1] += value

    def family(self):
        """Returns the histograms as prometheus-client expects them."""
        family = HistogramMetricFamily(
            PREFIX + self.name, f"{self.documentation} In microseconds.", labels=self.labels
        )
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        for labels, (counts, total) in self.cells.items():
            buckets = zip(names, itertools.accumulate(counts), strict=True)
            family.add_metric(labels, list(buckets), total)
        return family


class Metrics:
    """Counters and histograms of one server, with times in microseconds.

    | metric | labels |
    | --- | --- |
    | :tensorflow:serving:request_count | model_name, status |
    | :tensorflow:serving:request_latency | model_name, API, entrypoint |
    | :tensorflow:serving:runtime_latency | model_name, API, runtime |
    | :tensorflow:serving:batching_session:queuing_latency | thread_pool_name |
    | :tensorflow:cc:saved_model:load_attempt_count | model_path, status |

    prometheus-client formats the page. Its own counters would take a tenth of the time of a request.

    Args:
        thread_pool_name: str, name of the batching thread pool.

    Attributes:
        load_attempts: `Models.load_attempts`, once there are models.

    Example:
        >>> import grpc
        >>> metrics = Metrics()
        >>> metrics.count("rotation_cifar10", grpc.StatusCode.OK)
        >>> print(metrics.page().decode().splitlines()[-1])
        :tensorflow:serving:request_count{model_name="rotation_cifar10",status="OK"} 1.0
    """

    def __init__(self, thread_pool_name="batch_threads"):
        self._lock = threading.Lock()
        self._pool = (thread_pool_name,)
        self.load_attempts = {}
        self._latency = _Histogram(
            "request_latency", "Wall time of a request.", ["model_name", "API", "entrypoint"],
            LATENCY_BOUNDS,
        )  # fmt: skip
        self._runtime = _Histogram(
            "runtime_latency", "Wall time in the TensorFlow runtime.",
            ["model_name", "API", "runtime"], LATENCY_BOUNDS,
        )  # fmt: skip
        self._queuing = _Histogram(
            "batching_session:queuing_latency", "Wall time that a request waited for its batch.",
            ["thread_pool_name"], QUEUING_BOUNDS,
        )  # fmt: skip
        self._counts = {}
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count(self, model, status):
        """Counts a request to a model by its grpc.StatusCode."""
        key = (model, status.name)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def request(self, model, api, entrypoint, seconds):
        """Records the latency of a successful request over `entrypoint`, "GRPC" or "REST"."""
        with self._lock:
            self._latency.observe((model, api, entrypoint), seconds)

    def runtime(self, model, api, seconds):
        """Records the time of a Session run."""
        with self._lock:
            self._runtime.observe((model, api, "TF1"), seconds)

    def queued(self, seconds):
        """Records the time that a request waited in the batching queue."""
        with self._lock:
            self._queuing.observe(self._pool, seconds)

    def collect(self):
        """Returns the metrics as prometheus-client expects them from a collector."""
        with self._lock:
            requests = Metric(f"{PREFIX}request_count", "The total number of requests.", "counter")
            for (model, status), number in self._counts.items():
                labels = {"model_name": model, "status": status}
                requests.add_sample(f"{PREFIX}request_count", labels, number)
            loads = Metric(LOAD_ATTEMPTS, "The number of attempts to load a version.", "counter")
            # A copy, since a version may be loaded meanwhile.
            for (path, status), number in self.load_attempts.copy().items():
                loads.add_sample(LOAD_ATTEMPTS, {"model_path": path, "status": status}, number)
            return [
                self._latency.family(),
                self._runtime.family(),
                self._queuing.family(),
                loads,
                requests,
            ]

    def page(self):
        """Returns the metrics in Prometheus' text format, as bytes."""
        page = prometheus_client.generate_latest(self._registry)
        # prometheus-client appends _total to the names of counters, TensorFlow Serving does not.
        return re.sub(rb"(?m)^(# (?:HELP|TYPE) \S+)_total ", rb"\1 ", page)
