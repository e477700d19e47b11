"""Images of all formats, bytes that are not an image, and requests whose declared sizes exceed their data."""

import io
import os
from pathlib import Path

import grpc
import malformed_requests
import numpy as np
import pytest
import server_process
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from keras_ssl.ops import decode, images


def resident_bytes():
    """Returns the memory of this process, where the server runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def image_file(kind, mode="RGB", size=(9, 7), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def sixteen_bits():
    return tf.io.encode_png(tf.cast(tf.random.uniform((5, 6, 3), 0, 65535), tf.uint16)).numpy()


def animation():
    frames = [Image.new("RGB", (8, 6), (40 * i, 10, 90)) for i in range(4)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def gif_bomb():
    """A GIF with a frame of 65,535 x 65,535 pixels on a screen of 8 x 8."""
    content = bytearray(image_file("GIF", size=(8, 8)))
    place = content.index(b"\x2c\0\0\0\0")
    content[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    return bytes(content)


def jpeg_bomb():
    """A JPEG whose header declares 12,000 x 12,000 pixels."""
    content = bytearray(image_file("JPEG", size=(16, 16)))
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = (12000).to_bytes(2, "big") * 2
    return bytes(content)


def png_bomb():
    """A PNG whose header declares 50,000 x 50,000 pixels."""
    content = bytearray(image_file("PNG", size=(16, 16)))
    content[16:24] = (50_000).to_bytes(4, "big") * 2
    return bytes(content)


def many_scans():
    """A JPEG that refines the same pixels 2,000 times."""
    content = image_file("JPEG", size=(64, 64), progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 2000 + content[-2:]


def long_png():
    """A PNG of 1 x 200,000 pixels, whose resized form has 6,400,000 rows before it is cropped."""
    file = io.BytesIO()
    Image.new("RGB", (1, 200_000), (9, 99, 199)).save(file, "PNG")
    return file.getvalue()


IMAGES = {
    "long": long_png(),
    "jpeg": image_file("JPEG"),
    "gray": image_file("JPEG", "L"),
    "cmyk": image_file("JPEG", "CMYK"),
    "rgba": image_file("PNG", "RGBA"),
    "palette": image_file("PNG", "P"),
    "16 bits": sixteen_bits(),
    "bmp": image_file("BMP"),
    "gif": animation(),
}
NOT_IMAGES = {
    "empty": b"",
    "garbage": bytes(range(256)) * 9,
    "webp": image_file("WEBP"),
    "gif bomb": gif_bomb(),
    "jpeg bomb": jpeg_bomb(),
    "png bomb": png_bomb(),
    "many scans": many_scans(),
    "magic only": b"\xff\xd8\xff",
    "text": b"GET / HTTP/1.1\r\n\r\n" * 3,
}


def encoded(*contents):
    """Builds a request for the features of encoded images."""
    message = server_process.request("rotation_digits", encoded=np.array(contents, object))
    message.model_spec.signature_name = "encoded"
    return message


@pytest.mark.parametrize("kind", IMAGES)
def test_every_format_is_decoded(stub, task, kind):
    answer = stub.Predict(encoded(IMAGES[kind], IMAGES["jpeg"]), timeout=20)
    rows = tf.make_ndarray(answer.outputs["features"])
    resized = images.resize(decode.decode(IMAGES[kind]), 32, 32)
    np.testing.assert_allclose(rows[:1], task.features(resized[None]), rtol=1e-4, atol=1e-4)


def test_bytes_that_are_not_an_image_are_rejected_without_using_memory(stub):
    stub.Predict(encoded(IMAGES["jpeg"]), timeout=20)
    before = resident_bytes()
    truncated = [
        content[: i * len(content) // 21] for content in IMAGES.values() for i in range(1, 21)
    ]
    accepted, errors = [], []
    for content in [*NOT_IMAGES.values(), *truncated]:
        try:
            stub.Predict(encoded(content), timeout=20)
            accepted.append(content)
        except grpc.RpcError as error:
            errors.append(error)
    assert not set(accepted) & set(NOT_IMAGES.values())  # decoders may fill in what is truncated
    assert {error.code() for error in errors} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert len(errors) > len(truncated) / 2
    assert max(len(error.details()) for error in errors) <= 1024
    assert resident_bytes() - before < 256 * 2**20


def test_tensors_that_declare_more_than_they_carry_are_rejected(stub):
    before = resident_bytes()
    for dims in ([2**28, 32, 32, 3], [2**62, 2**62, 3, 3], [2**31, 1, 1, 1], [1] * 300):
        message = server_process.request(
            "rotation_digits", images=np.zeros((1, 32, 32, 3), np.uint8)
        )
        tensor = message.inputs["images"]
        tensor.tensor_content = b""
        tensor.int_val.append(3)
        del tensor.tensor_shape.dim[:]
        for size in dims:
            tensor.tensor_shape.dim.add(size=size)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(message, timeout=10)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert resident_bytes() - before < 64 * 2**20


@pytest.fixture(scope="module")
def valid():
    return server_process.request("rotation_digits", images=np.zeros((2, 32, 32, 3), np.uint8))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32), pixels=st.booleans())
def test_mutated_requests_are_rejected_or_answered(channel, valid, seed, pixels):
    """The short form of `tools/soak_serving.py malformed`."""
    data = malformed_requests.mutated(
        valid if pixels else encoded(IMAGES["jpeg"]), np.random.default_rng(seed)
    )
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    try:
        call(data, timeout=20)
    except grpc.RpcError as error:
        assert error.code().name in (  # noqa: PT017
            "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION",
        ), error  # fmt: skip
    if seed % 10 == 0:
        call(valid.SerializeToString(), timeout=20)
