"""The feature client: pictures in, feature vectors out, from a server anywhere."""

from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MAX_BYTES = 3 * 2**20  # of one request: gRPC's default limit is 4 MiB


class FeatureClient:
    """Asks TensorFlow Serving, or the embedded server, for features.

    Args:
        address: "host:port" of the server's gRPC port.
        model: name of the model there.
        version: int, or None for the version the server thinks newest.
        batch_size: int, pictures in one request at most.
        timeout: float, seconds that each request may take.

    Raises:
        ValueError: `batch_size` or `timeout` is not positive.

    Example:
        >>> client = FeatureClient("localhost:8500", "rotation_cifar10")
        >>> vectors = client.features(["a.jpg", "b.jpg"])               # doctest: +SKIP
    """

    def __init__(self, address, model, version=None, batch_size=64, timeout=30.0):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        self.address, self.model, self.version = address, model, version
        self.batch_size, self.timeout = batch_size, timeout
        self._channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1)]
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def features(self, pictures):
        """Features of pictures, in their order.

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size; or a sequence of such (H, W, 3)
                arrays, of file paths, or of encoded JPEG, PNG, BMP or GIF bytes. Files and bytes
                may have any size: the server decodes, resizes and crops them.

        Returns:
            (N, D) float32 array.

        Raises:
            ValueError: no pictures, something that is none, or a request that the server refuses
                (unknown model, wrong size, unreadable picture): its words are in the message.
            ConnectionError: no server at `address`.
            TimeoutError: no answer within `timeout` seconds.
        """
        if isinstance(pictures, str | bytes | Path):
            raise ValueError(
                f"pictures must be a sequence, got one {type(pictures).__name__}: [it]"
            )
        if not len(pictures):
            raise ValueError("pictures must hold at least one picture, got none")
        if isinstance(pictures[0], str | bytes | Path):
            signature, name = "encoded", "encoded"
            items = (p if isinstance(p, bytes) else Path(p).read_bytes() for p in pictures)
        else:
            signature, name = "serving_default", "images"
            items = (self._pixels(p) for p in pictures)

        return self._ask(signature, name, items, output="features")["features"]

    def pretext(self, pictures):
        """What the task predicts for pictures: colours, the filled hole, rotation logits, ...

        Args:
            pictures: (N, H, W, 3) uint8 array of the model's size, or a sequence of such (H, W, 3) arrays.

        Returns:
            dict of arrays with the picture on axis 0, as the task's `prediction` gives them: `picture`
            (N, H, W, 3) uint8 for generation tasks.

        Raises:
            ValueError, ConnectionError, TimeoutError: as `features`; also where the task has no such
                signature.

        Example:
            >>> client = FeatureClient("localhost:8500", "colorization_photos")
            >>> colours = client.pretext(gray_pictures)["picture"]      # doctest: +SKIP
        """
        if not len(pictures):
            raise ValueError("pictures must hold at least one picture, got none")
        return self._ask("pretext", "images", (self._pixels(p) for p in pictures))

    def _ask(self, signature, name, items, output=None):
        """Dict of the outputs for all items, asked in requests that are not too large."""
        parts, batch, size = [], [], 0
        for item in items:
            length = len(item) if signature == "encoded" else item.nbytes
            if batch and (len(batch) == self.batch_size or size + length > MAX_BYTES):
                parts.append(self._request(signature, name, batch, output))
                batch, size = [], 0
            batch.append(item)
            size += length
        parts.append(self._request(signature, name, batch, output))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def close(self):
        """Closes the connection."""
        self._channel.close()

    @staticmethod
    def _pixels(picture):
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3:
            raise ValueError(
                "pictures must be (H, W, 3) uint8 arrays, file paths or encoded bytes, got "
                f"{picture.dtype} of shape {picture.shape}"
            )
        return picture

    def _request(self, signature, name, batch, output):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature
        if self.version is not None:
            request.model_spec.version.value = self.version
        if signature != "encoded":
            if len({picture.shape for picture in batch}) > 1:
                raise ValueError("pictures must all have one shape; files and bytes need not")
            batch = np.stack(batch)
        request.inputs[name].CopyFrom(tf.make_tensor_proto(batch))
        if output is not None:
            request.output_filter.append(output)
        try:
            response = self._stub.Predict(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise self._error(error) from None
        return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}

    def _error(self, error):
        code, words = error.code(), error.details()
        if code == grpc.StatusCode.UNAVAILABLE:
            return ConnectionError(
                f"no server at {self.address!r}: start one with `keras-ssl serve` ({words})"
            )
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return TimeoutError(
                f"{self.address!r} did not answer within {self.timeout} s: raise timeout or lower "
                "batch_size"
            )
        refused = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        )
        kind = ValueError if code in refused else RuntimeError
        return kind(f"server {self.address!r}, model {self.model!r}: {words} ({code.name})")
