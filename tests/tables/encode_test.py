"""Encoders of files and clips: the local model, and a client whose server is a function."""

import itertools

import grpc
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.serving.client.protocol import Response
from keras_ssl.tables import encode


@pytest.fixture(scope="module")
def model():
    return kssl.encoders.resnet((16, 16, 3), width=2, blocks=(1,))


@pytest.fixture(scope="module")
def files(noise):
    """Rows and bytes of 11 files; those of 0, 4, 5 and 10 are no images."""
    contents = [tf.io.encode_png(image[: 20 + i]).numpy() for i, image in enumerate(noise[:11])]
    for i in (0, 4, 5, 10):
        contents[i] = contents[i][:60] if i == 4 else b"text"
    return list(enumerate(contents))


@pytest.fixture(scope="module")
def encoder(model):
    return encode.LocalEncoder(model, batch_size=3)


def test_local_files(encoder, model, files, noise):
    assert encoder.size == (16, 16)
    found = list(encoder.files(iter(files)))
    assert [row for row, _ in found] == list(range(11))
    for row, result in found:
        if row in (0, 4, 5, 10):
            assert isinstance(result, str)
        else:
            pixels = kssl.images.resize(noise[row][: 20 + row], 16, 16)[None]
            np.testing.assert_allclose(result, model(pixels).numpy()[0], rtol=1e-4, atol=1e-5)
    assert found[0][1] == "Unknown image file format (JPEG, PNG, GIF, BMP)"
    assert "\n" not in found[4][1]
    assert "{{" not in found[4][1]


def test_a_file_is_not_called_unreadable_when_memory_is_short(encoder, files, monkeypatch):
    def pixels(_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(encoder, "_pixels", pixels)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        list(encoder.files(files))


def test_local_files_are_read_only_a_little_ahead(encoder, files):
    read = itertools.count()
    good = (files[1] for _ in iter(lambda: next(read), 100))
    next(encoder.files(good))
    assert next(read) < 14


def test_local_clips(encoder, model, noise):
    clips = noise[:15, :16, :16].reshape(5, 3, 16, 16, 3)
    found = list(encoder.clips(enumerate(clips)))
    assert [row for row, _ in found] == list(range(5))
    expected = model(clips.reshape(15, 16, 16, 3)).numpy().reshape(5, 3, -1)
    np.testing.assert_allclose([f for _, f in found], expected, rtol=1e-4, atol=1e-5)


class FakeClient:
    """Responds to file b"7" with (7, -7); refuses requests with a file that is no number."""

    address, model = "localhost:1", "m"
    version = label = None

    def __init__(self, batch_size=4, versions=None):
        self.batch_size, self.versions = batch_size, versions or itertools.repeat(3)
        self.requests = []  # [version, number of images]

    def _responses(self, signature, contents):
        assert signature in ("encoded", None)
        contents = iter(contents)
        # Two requests in flight: a second one has been read when the first fails.
        requests = [list(itertools.islice(contents, self.batch_size)) for _ in range(2)]
        while requests[0]:
            self.requests.append([self.version, len(requests[0])])
            values = [self._value(content) for content in requests.pop(0)]
            version = self.version or next(self.versions)
            yield Response(
                {"features": np.float32([[v, -v] for v in values])}, len(values), version
            )
            requests.append(list(itertools.islice(contents, self.batch_size)))

    def _value(self, content):
        if isinstance(content, np.ndarray):
            return int(content[0, 0, 0])
        if not content.isdigit():
            error = ValueError("server 'localhost:1', model 'm': cannot decode (INVALID_ARGUMENT)")
            error.code = grpc.StatusCode.INVALID_ARGUMENT.name
            raise error
        return int(content)


@pytest.mark.parametrize("bad", [(), (0,), (0, 1, 2), (13,), (29,), (5, 6, 20), range(30)])
def test_served_files(bad):
    client = FakeClient()
    encoder = encode.ServedEncoder(client)
    items = [(f"row {i}", b"x" if i in bad else str(i).encode()) for i in range(30)]
    found = list(encoder.files(iter(items)))
    assert [row for row, _ in found] == [row for row, _ in items]
    for i, (_, result) in enumerate(found):
        if i in bad:
            assert result == "cannot decode (INVALID_ARGUMENT)"
        else:
            assert result.tolist() == [i, -i]
    assert encoder.version == (None if len(bad) == 30 else 3)


def test_all_requests_but_the_first_are_for_its_version():
    client = FakeClient(versions=iter([3]))
    encoder = encode.ServedEncoder(client)
    list(encoder.files((i, str(i).encode()) for i in range(20)))
    assert client.requests[0] == [None, 1]
    assert {version for version, _ in client.requests[1:]} == {3}
    assert max(number for _, number in client.requests) == 4
    client = FakeClient(versions=iter([]))  # which would be used without a pinned version
    encoder = encode.ServedEncoder(client)
    encoder.pin(8)
    assert len(list(encoder.files((i, str(i).encode()) for i in range(20)))) == 20
    assert {version for version, _ in client.requests} == {8}


def test_a_server_with_another_version():
    client = FakeClient()
    client._responses = lambda *_: iter([Response({"features": np.zeros((1, 2))}, 1, 4)])
    encoder = encode.ServedEncoder(client)
    encoder.pin(3)
    with pytest.raises(RuntimeError, match="responded with version 4 of 'm', not with version 3"):
        list(encoder.files([(0, b"0")]))


def test_a_version_that_is_no_longer_served():
    client = FakeClient()

    def missing(*_):
        error = ValueError("Servable not found")
        error.code = "NOT_FOUND"
        raise error
        yield

    client._responses = missing
    encoder = encode.ServedEncoder(client)
    encoder.pin(3)
    with pytest.raises(
        ValueError, match=r"not found; the table has features of version 3: serve that"
    ):
        list(encoder.files([(0, b"0")]))


@pytest.mark.parametrize("frames", [1, 3, 5])
def test_served_clips(frames):
    clips = np.arange(7 * frames, dtype=np.uint8).reshape(7, frames, 1, 1, 1).repeat(3, axis=4)
    encoder = encode.ServedEncoder(FakeClient())
    found = list(encoder.clips(enumerate(clips)))
    assert [row for row, _ in found] == list(range(7))
    values = np.stack([features for _, features in found])
    np.testing.assert_array_equal(values[..., 0], np.arange(7 * frames).reshape(7, frames))
    assert encoder.version == 3
    assert list(encode.ServedEncoder(FakeClient()).clips([])) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{function_node __wrapped__X}} bad file [Op:DecodePng]", "bad file"),
        (
            "Graph execution error:\n\n  File 'a', line 1\n\nbad file\n\t [[{{node x}}]] [Op:y]",
            "bad file",
        ),
        (
            "Detected at node Assert\n\nassertion failed: [too many]\n\t [[{{node Assert}}]]",
            "too many",
        ),
        (
            "server 'localhost:1', model 'm': bad file\n\t [[{{node x}}]] (INVALID_ARGUMENT)",
            "bad file",
        ),
        ("", "ValueError"),
    ],
)
def test_reasons_have_no_names_of_the_graph(text, expected):
    assert encode.reason(ValueError(text)) == expected
