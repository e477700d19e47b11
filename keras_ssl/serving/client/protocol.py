"""What both feature clients say and understand: requests, answers, errors, and when to ask again."""

import collections
import math
import random
import time
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

MAX_BYTES = 3 * 2**20  # of one request: gRPC's default limit is 4 MiB
# Seconds before a request is sent again: 0.7, 1.4, 2.8, 5.6, 11.2, then 20 each time.
FIRST_WAIT, LONGEST_WAIT = 0.7, 20.0
FIELDS = {
    types_pb2.DT_FLOAT: ("float_val", np.float32),
    types_pb2.DT_UINT8: ("int_val", np.uint8),
    types_pb2.DT_INT32: ("int_val", np.int32),
    types_pb2.DT_INT64: ("int64_val", np.int64),
}

Answer = collections.namedtuple("Answer", "outputs number version")


class ClientBase:
    """What the two clients share: settings, how a request is worded, how an answer is read."""

    def __init__(
        self, address, model, version=None, label=None, batch_size=64, timeout=30.0, window=4,
        retries=5, credentials=None,
    ):  # fmt: skip
        for name, value, least in (
            ("batch_size", batch_size, 1), ("window", window, 1), ("retries", retries, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout}")
        if version is not None and label is not None:
            raise ValueError(f"version {version} and label {label!r} both name one: give either")
        if not isinstance(credentials, grpc.ChannelCredentials | None):
            raise ValueError(
                "credentials must be what grpc.ssl_channel_credentials gives, got "
                f"{type(credentials).__name__}"
            )
        self.address, self.model, self.version, self.label = address, model, version, label
        self.batch_size, self.timeout, self.window = batch_size, timeout, window
        self.retries, self.credentials = retries, credentials
        self._open()

    def _connect(self, kind):
        """Channel and stub; `kind` is grpc or grpc.aio."""
        options = [
            ("grpc.max_receive_message_length", -1),
            # Else a server that is back would be looked for only every two minutes in the end.
            ("grpc.initial_reconnect_backoff_ms", 500),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if self.credentials is None:
            channel = kind.insecure_channel(self.address, options=options)
        else:
            channel = kind.secure_channel(self.address, self.credentials, options=options)
        return channel, prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def _request(self, signature, contents):
        """Asks `signature` about `contents`: (H, W, 3) uint8 arrays, or bytes for "encoded"."""
        request = predict_pb2.PredictRequest()
        spec = request.model_spec
        spec.name, spec.signature_name = self.model, signature
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        if signature == "encoded":
            tensor, shape = request.inputs["encoded"], ()
            tensor.dtype = types_pb2.DT_STRING
            tensor.string_val.extend(contents)
        else:
            tensor, shape = request.inputs["images"], contents[0].shape
            if any(picture.shape != shape for picture in contents):
                raise ValueError("pictures must all have one shape; files and bytes need not")
            tensor.dtype = types_pb2.DT_UINT8
            tensor.tensor_content = b"".join(picture.data for picture in contents)
        for size in (len(contents), *shape):
            tensor.tensor_shape.dim.add(size=size)
        if signature in ("encoded", "serving_default"):
            request.output_filter.append("features")
        return request

    def _answer(self, request, response):
        """What a response holds; RuntimeError where it is no answer to its request."""
        (asked,) = request.inputs.values()
        number = asked.tensor_shape.dim[0].size
        try:
            outputs = {key: array(value) for key, value in response.outputs.items()}
        except (ValueError, TypeError) as error:
            raise RuntimeError(f"server {self.address!r} sent a damaged answer: {error}") from None
        shapes = {key: value.shape for key, value in outputs.items()}
        missing = set(request.output_filter) - set(outputs)
        if not outputs or missing or any(shape[:1] != (number,) for shape in shapes.values()):
            raise RuntimeError(
                f"server {self.address!r}, model {self.model!r} answered {number} pictures with "
                f"{shapes}: there must be one row for each picture"
            )
        spec = response.model_spec
        version = spec.version.value if spec.HasField("version") else None
        return Answer(outputs, number, version)

    def _failure(self, error):
        """The exception that says what went wrong; its `code` is the status' name in gRPC."""
        code, words = error.code(), error.details()
        server = f"server {self.address!r}, model {self.model!r}"
        if code == grpc.StatusCode.UNAVAILABLE:
            failure = ConnectionError(
                f"no server at {self.address!r}: start one with `keras-ssl serve` ({words})"
            )
        elif code == grpc.StatusCode.DEADLINE_EXCEEDED:
            failure = TimeoutError(
                f"{self.address!r} did not answer within {self.timeout} s: raise timeout or lower "
                "batch_size or window"
            )
        elif code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            failure = RuntimeError(
                f"{server} is overloaded: lower window or batch_size, or ask later ({words})"
            )
        elif code in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        ):
            failure = ValueError(f"{server}: {words} ({code.name})")
        else:
            failure = RuntimeError(f"{server}: {words} ({code.name})")
        failure.code = code.name
        return failure


class Batch:
    """The pictures of the next request, as they come.

    A request is given out as soon as it is full, so that no picture is read before it is needed.
    """

    def __init__(self, client, signature):
        self.client, self.signature = client, signature
        self.contents, self.size = [], 0

    def add(self, picture):
        """Takes a picture; gives the requests, at most one, that are full now."""
        if self.signature is None:
            is_file = isinstance(picture, str | bytes | Path)
            self.signature = "encoded" if is_file else "serving_default"
        content = encoded(picture) if self.signature == "encoded" else pixels(picture)
        length = len(content) if self.signature == "encoded" else content.nbytes
        if self.size + length > MAX_BYTES:
            yield from self.rest()
        self.contents.append(content)
        self.size += length
        if len(self.contents) == self.client.batch_size:
            yield from self.rest()

    def rest(self):
        """The request for the pictures that are left, if there are any."""
        if self.contents:
            contents, self.contents, self.size = self.contents, [], 0
            yield self.client._request(self.signature, contents)


class Patience:
    """How long the answer to one request may still take, and when it is asked for again."""

    def __init__(self, client):
        self._deadline = time.monotonic() + client.timeout
        self._waits = (min(FIRST_WAIT * 2**n, LONGEST_WAIT) for n in range(client.retries))

    def left(self):
        """Seconds until the deadline."""
        return max(self._deadline - time.monotonic(), 0)

    def wait(self, code):
        """Seconds after which a request that failed with `code` is sent again, or None for never."""
        if code != grpc.StatusCode.UNAVAILABLE:
            return None
        wait = next(self._waits, None)
        if wait is None:
            return None
        wait *= random.uniform(0.8, 1.2)  # else all clients of a server would return together
        return wait if wait < self.left() else None


def checked(pictures):
    """The pictures themselves; ValueError where they are one picture, or nothing of the kind."""
    one = isinstance(pictures, str | bytes | Path)
    if one or not (hasattr(pictures, "__iter__") or hasattr(pictures, "__aiter__")):
        raise ValueError(
            "pictures must be a sequence, or a generator, of pictures, got one "
            f"{type(pictures).__name__}: [it]"
        )
    return pictures


def encoded(picture):
    """The bytes of a picture file."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    raise ValueError(
        "pictures must all be file paths or encoded bytes, as the first is, or all arrays, got a "
        f"{type(picture).__name__} among them"
    )


def pixels(picture):
    """The picture as an array whose bytes lie in order."""
    if isinstance(picture, str | bytes | Path):
        raise ValueError(
            "pictures must be (H, W, 3) uint8 arrays here, got a file or bytes: only features and "
            "stream take these, and all pictures must then be such"
        )
    picture = np.asarray(picture)
    if picture.dtype != np.uint8 or picture.ndim != 3:
        raise ValueError(
            "pictures must be (H, W, 3) uint8 arrays, file paths or encoded bytes, got "
            f"{picture.dtype} of shape {picture.shape}"
        )
    return np.ascontiguousarray(picture)


def array(value):
    """Array of a TensorProto; for floats in `float_val` 100 times as fast as tf.make_ndarray."""
    shape = [dim.size for dim in value.tensor_shape.dim]
    if value.dtype in FIELDS:
        field, dtype = FIELDS[value.dtype]
        if value.tensor_content:
            flat = np.frombuffer(value.tensor_content, dtype).copy()  # the caller's to write
        else:
            flat = np.array(getattr(value, field), dtype)
        if flat.size == math.prod(shape):
            return flat.reshape(shape)
    return tf.make_ndarray(value)  # also where one value stands for many


def joined(parts):
    """The outputs of several answers as one dict of arrays."""
    if not parts:
        raise ValueError("pictures must hold at least one picture, got none")
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
