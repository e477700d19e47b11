"""Runs requests in threads, in batches as TensorFlow Serving does or one by one."""

import collections
import contextlib
import logging
import os
import sys
import threading
import time

import grpc
import numpy as np

from keras_ssl.serving.server.batch_queue import BatchQueue
from keras_ssl.serving.server.errors import StatusError
from keras_ssl.serving.server.turns import Turns

log = logging.getLogger("keras_ssl.serving")
MAX_SERVED = 4096  # clients whose last batch is remembered
QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"


class _Task:
    """A request in a queue or batch; `done` is called with (outputs, error) when it has run."""

    def __init__(self, client, run, inputs, size, is_active, done):
        self.client, self.size, self.start = client, size, time.monotonic()
        self.run, self.inputs, self.is_active, self._done = run, inputs, is_active, done

    def finish(self, outputs=None, error=None):
        try:
            self._done(outputs, error)
        except Exception:  # must not end the thread
            log.exception("a response failed")

    def run_alone(self):
        if not self.is_active():
            self.finish()
            return
        try:
            outputs = self.run(self.inputs)
        except Exception as error:
            self.finish(error=error)
        else:
            self.finish(outputs)


class Runner:
    """Runs each request by itself, a few at the same time, round-robin per client (`Turns`).

    Args:
        threads: int.
    """

    max_batch_size = sys.maxsize

    def __init__(self, threads):
        self._turns = Turns(threads, "run")

    def submit(self, client, key, run, inputs, is_active, done):
        """As `Batcher.submit`; `key` is not used."""
        self._turns.submit(client, _Task(client, run, inputs, 0, is_active, done).run_alone)

    def close(self):
        """Ends the threads after the running requests; `done` is not called for waiting requests."""
        self._turns.close()


class Batcher:
    """Concatenates the inputs of concurrent requests along axis 0 and runs them as one batch.

    Only requests with the same key share a batch: the same model, version, signature, shapes and
    outputs. A batch runs when it is full, or when its oldest request has waited for
    `batch_timeout_micros` and a thread is free. It takes the next request of each client in turn
    (round-robin). If a batch fails, its requests are run one by one, so that only the faulty ones fail.

    Args:
        parameters: BatchingParameters proto; fields that are not set have TensorFlow Serving's
            defaults.
        queued: function that is called with the seconds that each request has waited in the queue; or None.

    Raises:
        ValueError: a parameter is invalid, or this server does not support it.

    Example:
        >>> from keras_ssl.serving.server.configs import BatchingParameters
        >>> batcher = Batcher(BatchingParameters())
        >>> def double(inputs):
        ...     return {"y": 2 * inputs["x"]}
        >>> batcher.submit("me", "double", double, {"x": np.ones(3)}, lambda: True, print)
        >>> batcher.close()
        {'y': array([2., 2., 2.])} None
    """

    def __init__(self, parameters, queued=None):
        def value(name, default):
            return getattr(parameters, name).value if parameters.HasField(name) else default

        self.max_batch_size = value("max_batch_size", 1000)
        self.timeout = value("batch_timeout_micros", 0) / 1e6
        self.max_enqueued = value("max_enqueued_batches", 10)
        self.allowed_sizes = list(parameters.allowed_batch_sizes)
        threads = value("num_batch_threads", os.cpu_count())
        self._check(threads, parameters.pad_variable_length_inputs)
        self._queued = queued or (lambda seconds: None)
        # key -> BatchQueue; the key that has not been served for the longest time comes first.
        self._queues = collections.OrderedDict()
        # client -> number of its last batch; the latest comes last.
        self._served, self._batches = collections.OrderedDict(), 0
        self._wake = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _check(self, threads, pad_variable_length_inputs):
        for name, number in (
            ("max_batch_size", self.max_batch_size),
            ("max_enqueued_batches", self.max_enqueued),
            ("num_batch_threads", threads),
        ):
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if self.timeout < 0:
            raise ValueError(
                f"batch_timeout_micros must not be negative, got {self.timeout * 1e6:.0f}"
            )
        sizes = self.allowed_sizes
        if sizes and (sizes != sorted(set(sizes)) or sizes[-1] != self.max_batch_size):
            raise ValueError(
                "allowed_batch_sizes must increase and end with max_batch_size "
                f"{self.max_batch_size}, got {sizes}"
            )
        if pad_variable_length_inputs:
            raise ValueError(
                "pad_variable_length_inputs is not available in the embedded server; leave it out"
            )

    def submit(self, client, key, run, inputs, is_active, done):
        """Queues inputs to be run as part of a batch.

        Args:
            client: hashable, such as the connection of a client.
            key: hashable; only requests with the same key share a batch.
            run: function from a dict of arrays to a dict of arrays. The functions of requests with the same
                key are interchangeable.
            inputs: dict of arrays. Inputs without a common length on axis 0, or with more than
                `max_batch_size` rows, are run alone.
            is_active: function that returns whether the client still waits; if not, nothing is run.
            done: function of (outputs, error) that is called once, in a thread of the batcher: with a dict of
                arrays and None; with None and the error that `run` raised for these inputs alone; or with
                None twice if the client no longer waits.

        Raises:
            StatusError: UNAVAILABLE, the queue is full, and this client already has its equal part of it.
        """
        lengths = {len(array) if np.ndim(array) else -1 for array in inputs.values()}
        size = lengths.pop() if len(lengths) == 1 else -1
        if not 0 < size <= self.max_batch_size:
            key, size = object(), self.max_batch_size  # a full batch of its own
        task = _Task(client, run, inputs, size, is_active, done)
        with self._wake:
            queue = self._queues.get(key) or BatchQueue()
            if not queue.has_room(client, size, self.max_enqueued * self.max_batch_size):
                raise StatusError(grpc.StatusCode.UNAVAILABLE, QUEUE_FULL)
            self._queues[key] = queue
            queue.add(task)
            # Otherwise a thread already waits for the timeout of the first task. Waking one costs a
            # tenth of a request.
            if queue.size == size or queue.size >= self.max_batch_size:
                self._wake.notify()

    def close(self):
        """Finishes the queued requests and ends the threads."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self):
        while tasks := self._next_batch():
            now = time.monotonic()
            active = []
            for task in tasks:
                self._queued(now - task.start)
                if task.is_active():
                    active.append(task)
                else:
                    task.finish()
            if active:
                self._run_batch(active)
            # Release the arrays of this batch before waiting for the next one.
            del tasks, active, task

    def _next_batch(self):
        """Waits for the tasks of the next batch; returns None when the batcher is closed."""
        with self._wake:
            while True:
                now = time.monotonic()
                due = {key: queue.start() + self.timeout for key, queue in self._queues.items()}
                ready = [
                    key
                    for key, queue in self._queues.items()
                    if queue.size >= self.max_batch_size or due[key] <= now or self._closed
                ]
                if ready:
                    return self._take(min(ready, key=self._rank))
                if self._closed:
                    return None
                self._wake.wait(min(due.values()) - now if due else None)

    def _rank(self, key):
        """Returns when the next client of a queue was last served; a client may have any number of queues."""
        return self._served.get(self._queues[key].next(), -1)

    def _take(self, key):
        """Removes the tasks of one batch from the queue of a key."""
        queue = self._queues[key]
        tasks = queue.take(self.max_batch_size)
        self._batches += 1
        for task in tasks:
            self._served[task.client] = self._batches
            self._served.move_to_end(task.client)
        while len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)
        if queue.size:
            self._queues.move_to_end(key)  # the other keys come first
        else:
            del self._queues[key]
        if self._queues:
            self._wake.notify()  # this thread may have been the one that waited for the other queues
        return tasks

    def _run_batch(self, tasks):
        parts = [None] * len(tasks)
        if len(tasks) > 1 or (tasks[0].size < self.max_batch_size and self.allowed_sizes):
            # Fails if one of the tasks is faulty, or if outputs cannot be split by task.
            with contextlib.suppress(Exception):
                parts = self._run_together(tasks)
        for task, outputs in zip(tasks, parts, strict=True):
            if outputs is None:
                task.run_alone()
            else:
                task.finish(outputs)

    def _run_together(self, tasks):
        """Runs all tasks at once and returns the outputs of each."""
        size = sum(task.size for task in tasks)
        inputs = {
            name: np.concatenate([task.inputs[name] for task in tasks]) for name in tasks[0].inputs
        }
        padded = next((allowed for allowed in self.allowed_sizes if allowed >= size), size)
        if padded > size:  # pad with copies of the first row
            inputs = {
                name: np.concatenate([array, np.repeat(array[:1], padded - size, axis=0)])
                for name, array in inputs.items()
            }
        outputs = tasks[0].run(inputs)
        if any(np.shape(array)[:1] != (padded,) for array in outputs.values()):
            raise ValueError("an output does not have the size of the batch on axis 0")
        ends = np.cumsum([task.size for task in tasks])
        return [
            {name: array[end - task.size : end] for name, array in outputs.items()}
            for task, end in zip(tasks, ends, strict=True)
        ]
