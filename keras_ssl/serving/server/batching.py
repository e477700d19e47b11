"""Requests that arrive together are run together, as TensorFlow Serving's batching does."""

import collections
import contextlib
import os
import threading
import time

import grpc
import numpy as np

from keras_ssl.serving.server.requests import Refusal

FULL = "The batch scheduling queue to which this task was submitted is full"


class _Task:
    """One request on its way through a batch; its thread waits for `done`."""

    def __init__(self, run, inputs, size, alive):
        self.run, self.inputs, self.size, self.alive = run, inputs, size, alive
        self.start = time.monotonic()
        self.outputs = self.error = None
        self.done = threading.Lock()
        self.done.acquire()

    def finish(self, outputs=None, error=None):
        self.outputs, self.error = outputs, error
        self.done.release()


class Batcher:
    """Puts tasks of one key (model, version, signature, shapes, outputs) together along axis 0.

    A batch is run when it is full, or when its oldest task has waited `batch_timeout_micros` and a
    thread is free. When a batch fails its tasks are run one by one, so that only those fail that must.

    Args:
        parameters: BatchingParameters proto; the fields that are not set have TensorFlow Serving's
            defaults.
        queued: function of the seconds that a task has waited, called as it leaves the queue; or None.

    Raises:
        ValueError: a parameter that makes no sense, or that this server does not have.

    Example:
        >>> from keras_ssl.serving.server.configs import BatchingParameters
        >>> batcher = Batcher(BatchingParameters())
        >>> batcher.run("double", lambda inputs: {"y": 2 * inputs["x"]}, {"x": np.ones(3)})
        {'y': array([2., 2., 2.])}
        >>> batcher.close()
    """

    def __init__(self, parameters, queued=None):
        def value(name, default):
            return getattr(parameters, name).value if parameters.HasField(name) else default

        self.max_batch_size = value("max_batch_size", 1000)
        self.timeout = value("batch_timeout_micros", 0) / 1e6
        self.max_enqueued = value("max_enqueued_batches", 10)
        threads = value("num_batch_threads", os.cpu_count())
        self.allowed = list(parameters.allowed_batch_sizes)
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
        if self.allowed and (
            self.allowed != sorted(set(self.allowed)) or self.allowed[-1] != self.max_batch_size
        ):
            raise ValueError(
                "allowed_batch_sizes must increase and end with max_batch_size "
                f"{self.max_batch_size}, got {self.allowed}"
            )
        if parameters.pad_variable_length_inputs:
            raise ValueError(
                "pad_variable_length_inputs is not available in the embedded server: leave it out"
            )
        self._queued = queued or (lambda seconds: None)
        self._queues = collections.OrderedDict()  # key -> deque of tasks, the longest waiting first
        self._wake = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def run(self, key, run, inputs, alive=lambda: True):
        """Runs inputs as part of a batch; returns when that is done.

        Args:
            key: hashable; tasks of one key can be put together.
            run: function of a dict of arrays to a dict of arrays, the same for all tasks of a key.
            inputs: dict of arrays, all with the same length on axis 0.
            alive: function, False when nobody waits for the answer any more: then nothing is run.

        Returns:
            dict of arrays; None where nobody waited.

        Raises:
            Refusal: UNAVAILABLE, the queue is full.
            Exception: whatever `run` raises for these inputs alone.
        """
        lengths = {len(array) if np.ndim(array) else -1 for array in inputs.values()}
        size = lengths.pop() if len(lengths) == 1 else -1
        if not 0 < size < self.max_batch_size:
            return run(inputs)  # a batch of its own, or nothing that could be put together
        task = _Task(run, inputs, size, alive)
        with self._wake:
            queue = self._queues.get(key)
            waiting = sum(other.size for other in queue or ()) + size
            if waiting > self.max_enqueued * self.max_batch_size:
                raise Refusal(grpc.StatusCode.UNAVAILABLE, FULL)
            if queue is None:
                queue = self._queues[key] = collections.deque()
            queue.append(task)
            # Else a thread knows already when the first of them is due: waking it costs as much as
            # a tenth of a request.
            if len(queue) == 1 or waiting >= self.max_batch_size:
                self._wake.notify()
        task.done.acquire()
        if task.error is not None:
            raise task.error
        return task.outputs

    def close(self):
        """Ends the threads, when the tasks that wait are done."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self):
        while tasks := self._next():
            now = time.monotonic()
            living = []
            for task in tasks:
                self._queued(now - task.start)
                if task.alive():
                    living.append(task)
                else:
                    task.finish()
            if living:
                self._run(living)
            # Nothing of a batch may live on while this thread waits for the next.
            del tasks, living, task

    def _next(self):
        """The tasks of the next batch; None when closed."""
        with self._wake:
            while True:
                now = time.monotonic()
                first = None  # when the oldest task of all will have waited long enough
                for key, queue in self._queues.items():
                    due = queue[0].start + self.timeout
                    full = sum(task.size for task in queue) >= self.max_batch_size
                    if full or due <= now or self._closed:
                        return self._take(key, queue)
                    first = due if first is None else min(first, due)
                if self._closed:
                    return None
                self._wake.wait(None if first is None else first - now)

    def _take(self, key, queue):
        tasks, size = [], 0
        while queue and size + queue[0].size <= self.max_batch_size:
            tasks.append(queue.popleft())
            size += tasks[-1].size
        if queue:
            self._queues.move_to_end(key)  # the others' turn
        else:
            del self._queues[key]
        if self._queues:
            self._wake.notify()  # this thread was perhaps the one that waited for them
        return tasks

    def _run(self, tasks):
        parts = [None] * len(tasks)
        if len(tasks) > 1 or self.allowed:
            # It fails for a bad task among good ones, and for outputs that cannot be cut apart.
            with contextlib.suppress(Exception):
                parts = self._together(tasks)
        for task, outputs in zip(tasks, parts, strict=True):
            try:
                task.finish(outputs or task.run(task.inputs))
            except Exception as error:
                task.finish(error=error)

    def _together(self, tasks):
        """Outputs of each task, from one run of all."""
        size = sum(task.size for task in tasks)
        inputs = {
            name: np.concatenate([task.inputs[name] for task in tasks]) for name in tasks[0].inputs
        }
        target = next((allowed for allowed in self.allowed if allowed >= size), size)
        if target > size:  # a size that the model is compiled for; the first row fills it up
            inputs = {
                name: np.concatenate([array, np.repeat(array[:1], target - size, axis=0)])
                for name, array in inputs.items()
            }
        outputs = tasks[0].run(inputs)
        if any(np.shape(array)[:1] != (target,) for array in outputs.values()):
            raise ValueError("an output's 0th dimension is not the batch's")
        ends = np.cumsum([task.size for task in tasks])
        return [
            {name: array[end - task.size : end] for name, array in outputs.items()}
            for task, end in zip(tasks, ends, strict=True)
        ]
