"""The feature client: pictures in, feature vectors out, from a server anywhere."""

import collections
import contextlib
import itertools
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import click
import grpc

from keras_ssl.serving.client.protocol import Batch, ClientBase, Patience, checked, joined


class FeatureClient(ClientBase):
    """Asks TensorFlow Serving, or the embedded server, for features.

    Several requests are on their way at a time, so that the server need not wait for the client. A
    request is sent again only where the server is UNAVAILABLE, after 0.7 s, then 1.4 s, 2.8 s, ...
    (each up to a fifth more or less, by chance). By default that outlasts a restart of 17 seconds,
    and an address without a server is an error after about 22: `retries=0` makes it one at once. For
    a longer absence raise `timeout` and `retries`.

    Several threads may use one client. A context manager: leaving closes the connection.

    Args:
        address: "host:port" of the server's gRPC port.
        model: name of the model there.
        version: int, or None for the version the server thinks newest.
        label: str, a version label of the server such as "stable", in place of `version`.
        batch_size: int, pictures in one request at most.
        timeout: float, seconds that each request may take, its retries included.
        window: int, requests on their way at a time at most.
        retries: int, how often a request is sent again at most.
        credentials: grpc.ChannelCredentials for TLS, or None for a connection without.

    Raises:
        ValueError: `batch_size`, `timeout`, `window` or `retries` is too small, both `version` and
            `label` are given, or `credentials` are none.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
        >>> vectors = client.features(["a.jpg", "b.jpg"])               # doctest: +SKIP

        Mutual TLS: the client knows the server by an authority, and shows who it is itself.

        >>> with FeatureClient(                                         # doctest: +SKIP
        ...     "features.example.org:8500", "rotation_cifar10",
        ...     credentials=credentials("ca.crt", "client.crt", "client.key"),
        ... ) as client:
        ...     vectors = client.features(["a.jpg", "b.jpg"])
    """

    def _open(self):
        self._channel, self._stub = self._connect(grpc)
        # As in grpc.aio: it begins the call and does not wait for the answer.
        self._stub.Predict = self._stub.Predict.future

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def features(self, pictures, progress=False):
        """Features of pictures, in their order.

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size; or an iterable of such (H, W, 3)
                arrays, of file paths, or of encoded JPEG, PNG, BMP or GIF bytes. Files and bytes
                may have any size: the server decodes, resizes and crops them.
            progress: bool, show a bar with pictures per second on stderr, if that is a terminal.

        Returns:
            (N, D) float32 array.

        Raises:
            ValueError: no pictures, something that is none, or a request that the server refuses
                (unknown model, wrong size, unreadable picture): its words are in the message.
            ConnectionError: no server at `address`, also not after the retries.
            TimeoutError: no answer within `timeout` seconds.
            RuntimeError: the server is overloaded or fails.
        """
        return self._gather(None, pictures, progress)["features"]

    def stages(self, pictures, progress=False):
        """Features of every stage of the encoder, averaged over the picture.

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size, or an iterable of such (H, W, 3)
                arrays.
            progress: bool, as in `features`.

        Returns:
            dict of (N, c) float32 arrays: `stage1`, ..., and `features`.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> second = client.stages(pixels)["stage2"]                # doctest: +SKIP
        """
        return self._gather("stages", pictures, progress)

    def pretext(self, pictures, progress=False):
        """What the task predicts for pictures: colours, the filled hole, rotation logits, ...

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size, or an iterable of such (H, W, 3)
                arrays.
            progress: bool, as in `features`.

        Returns:
            dict of arrays with the picture on axis 0, as the task's `prediction` gives them: `picture`
            (N, H, W, 3) uint8 for generation tasks.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`; ValueError also
                where the task has no such signature.

        Example:
            >>> client = FeatureClient("localhost:8500", "colorization_photos")
            >>> colours = client.pretext(gray_pictures)["image"]      # doctest: +SKIP
        """
        return self._gather("pretext", pictures, progress)

    def stream(self, pictures):
        """Features of pictures without end, one after the other, in their order.

        Of `pictures` at most `window` + 1 requests are read ahead. Where the caller stops early, the
        requests on their way are cancelled.

        Args:
            pictures: iterable as for `features`, such as a generator; it may be empty.

        Yields:
            (D,) float32 array for each picture.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`; and what
                `pictures` raises itself.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> for vector in client.stream(Path("photos").rglob("*.jpg")):    # doctest: +SKIP
            ...     index.add(vector)
        """
        for answer in self._answers(None, pictures):
            yield from answer.outputs["features"]

    def _gather(self, signature, pictures, progress):
        parts = []
        with progress_bar(pictures, progress) as came:
            for answer in self._answers(signature, pictures):
                parts.append(answer.outputs)
                came(answer.number)
        return joined(parts)

    def _answers(self, signature, pictures):
        """Answers in the order of the pictures, at most `window` requests on their way."""
        calls = collections.deque()
        try:
            for request in self._requests(signature, pictures):
                if len(calls) < self.window:
                    calls.append(_Call(self, request))
                    continue
                answer = calls[0].answer()
                # Sent before the yield: the server works while the caller does.
                calls.append(_Call(self, request))
                calls.popleft()
                yield answer
            while calls:
                answer = calls[0].answer()
                calls.popleft()
                yield answer
        finally:
            for call in calls:
                call.cancel()

    def _requests(self, signature, pictures):
        batch = Batch(self, signature)
        for picture in checked(pictures):
            yield from batch.add(picture)
        yield from batch.rest()


def credentials(ca=None, certificate=None, key=None):
    """Credentials for TLS, from PEM files.

    Args:
        ca: path of the authority's certificate that vouches for the server, or None for those that
            gRPC knows.
        certificate: path of the client's own certificate, for mutual TLS, or None.
        key: path of the private key of `certificate`, or None.

    Returns:
        grpc.ChannelCredentials.

    Raises:
        ValueError: one of `certificate` and `key` without the other.
        OSError: a file that cannot be read.

    Example:
        >>> credentials("ca.crt", "client.crt", "client.key")           # doctest: +SKIP
    """
    if (certificate is None) != (key is None):
        raise ValueError(
            f"certificate and key belong together: give both or none, got {certificate} and {key}"
        )
    return grpc.ssl_channel_credentials(
        *(None if name is None else Path(name).read_bytes() for name in (ca, key, certificate))
    )


class _Call:
    """One request on its way: sent again, after a wait, while the server is unavailable."""

    def __init__(self, client, request):
        self._client, self._request = client, request
        self._patience = Patience(client)
        self._response = futures.Future()
        self._call = self._timer = None
        self._cancelled = False
        self._send()

    def _send(self):
        try:
            call = self._client._stub.Predict(self._request, timeout=self._patience.left())
        except ValueError as error:  # the client was closed during the wait
            self._response.set_exception(error)
            return
        self._call = call
        if self._cancelled:  # meanwhile, by another thread, which did not see this call yet
            call.cancel()
        call.add_done_callback(self._ended)

    def _ended(self, call):
        if call.code() == grpc.StatusCode.OK:
            self._response.set_result(call.result())
            return
        wait = None if self._cancelled else self._patience.wait(call.code())
        if wait is None:
            self._response.set_exception(call)
        else:
            self._timer = threading.Timer(wait, self._send)
            self._timer.daemon = True
            self._timer.start()

    def answer(self):
        """Waits for it."""
        try:
            response = self._response.result()
        except grpc.RpcError as error:
            raise self._client._failure(error) from None
        return self._client._answer(self._request, response)

    def cancel(self):
        self._cancelled = True
        self._call.cancel()
        if self._timer is not None:
            self._timer.cancel()


@contextlib.contextmanager
def progress_bar(pictures, shown, label="features"):
    """A bar on stderr; gives the function to call with the number of pictures that came.

    Without a terminal, or where `shown` is False, nothing is written.
    """
    if not (shown and sys.stderr.isatty()):
        yield lambda number: None
        return
    # A count never ends and has no length: what click needs for a bar of unknown length.
    length = {"length": len(pictures)} if hasattr(pictures, "__len__") else {}
    start = time.monotonic()
    with click.progressbar(
        **(length or {"iterable": itertools.count()}), label=label, file=sys.stderr, show_pos=True,
        item_show_func=lambda rate: None if rate is None else f"{rate:,.0f} images/s",
    ) as bar:  # fmt: skip

        def came(number):
            passed = max(time.monotonic() - start, 1e-9)
            bar.update(number, (bar.pos + number) / passed)

        yield came
