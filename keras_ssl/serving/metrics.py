"""What Prometheus sees: the names, labels and buckets of TensorFlow Serving's own metrics."""

import prometheus_client


def _exponential(scale, factor, number):
    return [scale * factor**i for i in range(number)]


class Metrics:
    """Counters and histograms of one server, all times in microseconds.

    | metric | labels |
    | --- | --- |
    | :tensorflow:serving:request_count | model_name, status |
    | :tensorflow:serving:request_latency | model_name, API, entrypoint |
    | :tensorflow:serving:runtime_latency | model_name, API, runtime |
    | :tensorflow:serving:batching_session:queuing_latency | thread_pool_name |

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
        self._children = {}
        self._registry = prometheus_client.CollectorRegistry(auto_describe=False)
        latencies = _exponential(10, 1.8, 33)
        self._latency = self._histogram(
            "request_latency", "Wall time of a request.",
            ["model_name", "API", "entrypoint"], latencies,
        )  # fmt: skip
        self._runtime = self._histogram(
            "runtime_latency", "Wall time in the TensorFlow runtime.",
            ["model_name", "API", "runtime"], latencies,
        )  # fmt: skip
        self._queuing = self._histogram(
            "batching_session:queuing_latency", "Wall time that a request waited for its batch.",
            ["thread_pool_name"], _exponential(100, 1.2, 52),
        ).labels(thread_pool_name)  # fmt: skip
        self._requests = prometheus_client.Counter(
            ":tensorflow:serving:request_count", "The total number of requests.",
            ["model_name", "status"], registry=self._registry,
        )  # fmt: skip

    def _histogram(self, name, documentation, labels, buckets):
        return prometheus_client.Histogram(
            f":tensorflow:serving:{name}", f"{documentation} In microseconds.", labels,
            buckets=buckets, registry=self._registry,
        )  # fmt: skip

    def _child(self, metric, *labels):
        # `labels` checks and locks each time: a tenth of what a small request costs.
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def count(self, model, status):
        """Counts a request to a model that is served, by its grpc.StatusCode."""
        self._child(self._requests, model, status.name).inc()

    def request(self, model, api, entrypoint, seconds):
        """A request that was answered, by "GRPC" or "REST"."""
        self._child(self._latency, model, api, entrypoint).observe(seconds * 1e6)

    def runtime(self, model, api, seconds):
        """A run of a Session."""
        self._child(self._runtime, model, api, "TF1").observe(seconds * 1e6)

    def queued(self, seconds):
        """A request that left the queue of a batch."""
        self._queuing.observe(seconds * 1e6)

    def page(self):
        """The metrics in Prometheus' text format, as bytes."""
        page = prometheus_client.generate_latest(self._registry)
        # The client adds _total, and a series of creation times; TensorFlow Serving has neither.
        lines = page.replace(b":request_count_total", b":request_count").splitlines(keepends=True)
        return b"".join(line for line in lines if b"_created" not in line.split(b"{")[0])
