"""The feature client: sends images to a server and returns their features."""

import collections
import threading
from concurrent import futures

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2

from keras_ssl.serving.client.progress import progress_bar
from keras_ssl.serving.client.protocol import ClientBase, concatenate
from keras_ssl.serving.client.request_batcher import RequestBatcher, check_iterable


class FeatureClient(ClientBase):
    """Requests features from TensorFlow Serving or from the embedded server.

    Up to `window` requests are in flight at the same time, so that the server does not wait for the
    client. Requests are retried with exponential backoff (0.7 s, 1.4 s, 2.8 s, ..., each with up to
    20 percent of jitter), and only if the server is UNAVAILABLE. With the default settings a client
    survives a server restart of up to 17 seconds, and reports an address without a server after about
    22 seconds. For longer outages raise `timeout` and `retries`; `retries=0` fails at once.

    A client can be shared between threads. It is a context manager, which closes the connection on
    exit.

    Args:
        address: "host:port" of the server's gRPC port.
        model: str, name of the model on the server.
        version: int, or None for the newest version that the server has loaded.
        label: str, a version label on the server such as "stable", instead of `version`.
        batch_size: int, maximum number of images in one request.
        timeout: float, seconds that each request may take, including its retries.
        window: int, maximum number of requests in flight.
        retries: int, maximum number of retries of each request.
        credentials: grpc.ChannelCredentials for TLS, or None for an unencrypted connection.

    Raises:
        ValueError: `batch_size`, `timeout`, `window` or `retries` is too small, both `version` and
            `label` are given, or `credentials` has the wrong type.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
        >>> vectors = client.features(["a.jpg", "b.jpg"])               # doctest: +SKIP

        Mutual TLS: the client verifies the server and presents a certificate of its own.

        >>> with FeatureClient(                                         # doctest: +SKIP
        ...     "features.example.org:8500", "rotation_cifar10",
        ...     credentials=credentials("ca.crt", "client.crt", "client.key"),
        ... ) as client:
        ...     vectors = client.features(["a.jpg", "b.jpg"])
    """

    def _open(self):
        self._channel, self._stub = self._connect(grpc)
        # As in grpc.aio: Predict starts the call and does not wait for the response.
        self._stub.Predict = self._stub.Predict.future

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Closes the connection."""
        self._channel.close()

    def features(self, images, progress=False):
        """Computes the features of images, in the order of the images.

        Args:
            images: (N, H, W, 3) uint8 array of the model's input size; or an iterable of such
                (H, W, 3) arrays, of file paths, or of encoded JPEG, PNG, BMP or GIF bytes. Files and
                encoded bytes may have any size: the server decodes, resizes and crops them.
            progress: bool, show a progress bar on stderr if that is a terminal.

        Returns:
            (N, D) float32 array.

        Raises:
            ValueError: `images` is empty or contains something that is not an image, or the server
                rejects a request (unknown model, wrong size, unreadable image). The error includes
                the server's message.
            ConnectionError: no server is available at `address`, even after the retries.
            TimeoutError: no response within `timeout` seconds.
            RuntimeError: the server is overloaded or fails.
        """
        return self._gather(None, images, progress)["features"]

    def stages(self, images, progress=False):
        """Computes the features of every stage of the encoder, averaged over the image.

        Args:
            images: (N, H, W, 3) uint8 array of the model's input size, or an iterable of such
                (H, W, 3) arrays.
            progress: bool, as in `features`.

        Returns:
            dict of (N, c) float32 arrays: `stage1`, ..., and `features`.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> second = client.stages(pixels)["stage2"]                # doctest: +SKIP
        """
        return self._gather("stages", images, progress)

    def pretext(self, images, progress=False):
        """Computes the task's prediction for images: rotation logits, colors, the filled hole, ...

        Args:
            images: as in `stages`.
            progress: bool, as in `features`.

        Returns:
            dict of arrays with the image on axis 0, as the task's `prediction` returns them;
            generation tasks return (N, H, W, 3) uint8 images.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`. There is also a ValueError
                if the model has no `pretext` signature.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> logits = client.pretext(pixels)["rotation"]             # doctest: +SKIP
        """
        return self._gather("pretext", images, progress)

    def stream(self, images):
        """Computes the features of an unbounded iterable of images, one image after another.

        At most `window` + 1 requests are read ahead. If the caller stops early, the requests in
        flight are cancelled.

        Args:
            images: iterable as for `features`, for example a generator; it may be empty.

        Yields:
            (D,) float32 array for each image, in order.

        Raises:
            ValueError, ConnectionError, TimeoutError, RuntimeError: as `features`; and any error that
                iterating over `images` raises.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> for vector in client.stream(Path("photos").rglob("*.jpg")):    # doctest: +SKIP
            ...     index.add(vector)
        """
        for response in self._responses(None, images):
            yield from response.outputs["features"]

    def input_size(self):
        """Requests the height and width of the images that the model takes as pixels.

        Returns:
            (height, width).

        Raises:
            ValueError: the server has no such model, or the model takes no images of a fixed size.
            ConnectionError, TimeoutError, RuntimeError: as `features`.

        Example:
            >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
            >>> clips = kssl.data.from_videos("videos/", 4, 1, client.input_size())    # doctest: +SKIP
        """
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        try:
            response = self._stub.GetModelMetadata(
                request, timeout=self.timeout, wait_for_ready=self.retries > 0
            )
        except grpc.RpcError as error:
            raise self._exception(error) from None
        found = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(found)
        images = found.signature_def["serving_default"].inputs["images"]
        size = tuple(dim.size for dim in images.tensor_shape.dim)[1:3]
        if len(size) < 2 or min(size) < 1:
            raise ValueError(
                f"server {self.address!r}, model {self.model!r} takes no `images` of a fixed size, which "
                "clips need"
            )
        return size

    def _gather(self, signature, images, progress):
        parts = []
        with progress_bar(images, progress) as advance:
            for response in self._responses(signature, images):
                parts.append(response.outputs)
                advance(response.count)
        return concatenate(parts)

    def _responses(self, signature, images):
        """Yields responses in the order of the images, with at most `window` requests in flight."""
        calls = collections.deque()
        try:
            for request in self._requests(signature, images):
                if len(calls) < self.window:
                    calls.append(_Call(self, request))
                    continue
                response = calls[0].response()
                # Sent before the yield, so that the server works while the caller does.
                calls.append(_Call(self, request))
                calls.popleft()
                yield response
            while calls:
                response = calls[0].response()
                calls.popleft()
                yield response
        finally:
            for call in calls:
                call.cancel()

    def _requests(self, signature, images):
        batcher = RequestBatcher(self, signature)
        for image in check_iterable(images):
            yield from batcher.add(image)
        yield from batcher.flush()


class _Call:
    """A request in flight, which is retried from a timer thread while the server is unavailable."""

    def __init__(self, client, request):
        self._client, self._request = client, request
        self._policy = client._retry_policy()
        self._result = futures.Future()
        self._call = self._timer = None
        self._cancelled = False
        self._send()

    def _send(self):
        try:
            call = self._client._stub.Predict(self._request, timeout=self._policy.remaining())
        except ValueError as error:  # the client was closed during the backoff
            self._result.set_exception(error)
            return
        self._call = call
        if self._cancelled:  # by another thread that could not see this call yet
            call.cancel()
        call.add_done_callback(self._on_done)

    def _on_done(self, call):
        if call.code() == grpc.StatusCode.OK:
            self._result.set_result(call.result())
            return
        seconds = None if self._cancelled else self._policy.backoff(call.code())
        if seconds is None:
            self._result.set_exception(call)
        else:
            self._timer = threading.Timer(seconds, self._send)
            self._timer.daemon = True
            self._timer.start()

    def response(self):
        """Waits for the response and returns it."""
        try:
            response = self._result.result()
        except grpc.RpcError as error:
            raise self._client._exception(error) from None
        return self._client._parse_response(self._request, response)

    def cancel(self):
        """Cancels the request and its retries."""
        self._cancelled = True
        self._call.cancel()
        if self._timer is not None:
            self._timer.cancel()
