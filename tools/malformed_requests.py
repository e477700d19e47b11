"""Sends malformed PredictRequests: invalid fields, changed and missing bytes; a part of `soak_serving.py`."""

import collections
import json

import grpc
import numpy as np
import tensorflow as tf
from server_process import request
from tensorflow_serving.apis import predict_pb2

FAULTS = {"UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED"}  # that a malformed request must not cause


def mutated(message, rng):
    """Serializes a PredictRequest with invalid fields, or with bytes changed or removed.

    Args:
        message: PredictRequest.
        rng: np.random.Generator.

    Returns:
        bytes.
    """
    kind = rng.integers(6)
    copy = predict_pb2.PredictRequest()
    copy.CopyFrom(message)
    tensor = copy.inputs[next(iter(copy.inputs))]
    if kind == 0 and tensor.tensor_shape.dim:
        dim = tensor.tensor_shape.dim[rng.integers(len(tensor.tensor_shape.dim))]
        dim.size = int(rng.choice([-1, 0, 1, 2**31, 2**62, 7]))
    elif kind == 1:
        tensor.dtype = int(rng.integers(0, 130))
    elif kind == 2:
        copy.model_spec.signature_name = str(rng.choice(["", "encoded", "stages", "pretext", "\0"]))
        copy.output_filter.append(str(rng.choice(["features", "stage1", "", "x"])))
    elif kind == 3:
        del tensor.tensor_shape.dim[rng.integers(4) :]
        tensor.float_val.extend([1.0, float("nan")])
        tensor.string_val.append(rng.bytes(5))
    data = bytearray(copy.SerializeToString())
    if kind >= 4:
        _mutate_bytes(data, rng)
    return bytes(data)


def _mutate_bytes(data, rng):
    for _ in range(rng.integers(1, 9)):
        if not data:
            break
        # Mostly near the start, which has names, types and sizes.
        place = int(rng.integers(len(data) if rng.random() < 0.3 else min(60, len(data))))
        if rng.random() < 0.7:
            data[place] = int(rng.integers(256))
        else:
            del data[place : place + int(rng.integers(1, 40))]


def malformed(server, name, number=10_000, seed=0):
    """Sends malformed requests: they are rejected, and the server continues to serve.

    Args:
        server: Served.
        name: str, an exported model that it serves, for images of 32 x 32 pixels.
        number: int, requests.
        seed: int.

    Returns:
        dict of status to number.
    """
    rng = np.random.default_rng(seed)
    good = request(name, images=rng.integers(0, 256, (2, 32, 32, 3), np.uint8))
    encoded = request(name, encoded=[tf.io.encode_png(np.zeros((9, 7, 3), np.uint8)).numpy()])
    encoded.model_spec.signature_name = "encoded"
    statuses = collections.Counter()
    with server.channel() as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        for i in range(number):
            try:
                call(mutated(good if rng.random() < 0.7 else encoded, rng), timeout=30)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1
                if error.code().name in FAULTS:
                    raise
            if i % 100 == 0:
                call(good.SerializeToString(), timeout=30)
        assert server.process.poll() is None
    print(f"malformed: {json.dumps(statuses)}")
    return dict(statuses)
