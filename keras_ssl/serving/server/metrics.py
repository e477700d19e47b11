"""What Prometheus sees: the names, labels and buckets of TensorFlow Serving's own metrics."""

import bisect
import itertools
import threading

import prometheus_client
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

PREFIX = ":tensorflow:serving:"
LATENCIES = [10 * 1.8**i for i in range(33)]  # bounds of the buckets, in microseconds
QUEUING = [100 * 1.2**i for i in range(52)]


class _Histogram:
    """Counts by bucket, for each set of labels."""

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
        family = HistogramMetricFamily(
            PREFIX + self.name, f"{self.documentation} In microseconds.", labels=self.labels
        )
        names = [*map(floatToGoString, self.bounds), "+Inf"]
        for labels, (counts, total) in self.cells.items():
            buckets = zip(names, itertools.accumulate(counts), strict=True)
            family.add_metric(labels, list(buckets), total)
        return family


class Metrics:
    """Counters and histograms of one server, all times in microseconds.

    | metric | labels |
    | --- | --- |
    | :tensorflow:serving:request_count | model_name, status |
    | :tensorflow:serving:request_latency | model_name, API, entrypoint |
    | :tensorflow:serving:runtime_latency | model_name, API, runtime |
    | :tensorflow:serving:batching_session:queuing_latency | thread_pool_name |

    prometheus-client writes the page; its own counters cost a request a tenth of its time.

    Args:
        thread_pool_name: name of the batch threads.

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
        self._latency = _Histogram(
            "request_latency", "Wall time of a request.", ["model_name", "API", "entrypoint"],
            LATENCIES,
        )  # fmt: skip
        self._runtime = _Histogram(
            "runtime_latency", "Wall time in the TensorFlow runtime.",
            ["model_name", "API", "runtime"], LATENCIES,
        )  # fmt: skip
        self._queuing = _Histogram(
            "batching_session:queuing_latency", "Wall time that a request waited for its batch.",
            ["thread_pool_name"], QUEUING,
        )  # fmt: skip
        self._counts = {}
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def count(self, model, status):
        """Counts a request to a model that is served, by its grpc.StatusCode."""
        key = (model, status.name)
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1

    def request(self, model, api, entrypoint, seconds):
        """A request that was answered, by "GRPC" or "REST"."""
        with self._lock:
            self._latency.observe((model, api, entrypoint), seconds)

    def runtime(self, model, api, seconds):
        """A run of a Session."""
        with self._lock:
            self._runtime.observe((model, api, "TF1"), seconds)

    def queued(self, seconds):
        """A request that left the queue of a batch."""
        with self._lock:
            self._queuing.observe(self._pool, seconds)

    def collect(self):
        """The metrics, as prometheus-client asks for them."""
        with self._lock:
            requests = Metric(f"{PREFIX}request_count", "The total number of requests.", "counter")
            for (model, status), number in self._counts.items():
                labels = {"model_name": model, "status": status}
                requests.add_sample(f"{PREFIX}request_count", labels, number)
            return [
                self._latency.family(),
                self._runtime.family(),
                self._queuing.family(),
                requests,
            ]

    def page(self):
        """The metrics in Prometheus' text format, as bytes."""
        page = prometheus_client.generate_latest(self._registry)
        # The client's counters all end in _total; TensorFlow Serving's does not.
        return page.replace(b"request_count_total", b"request_count")
