"""Both clients and the embedded server together: features, stages and predictions are those of Keras."""

import asyncio

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import serving

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def address(server):
    return f"localhost:{server.port}"


@pytest.fixture
def client(address):
    with kssl.FeatureClient(address, "rotation_digits", batch_size=16) as client:
        yield client


def test_features_are_those_of_keras_in_the_order_of_the_images(client, task, noise):
    expected = task.features(noise).numpy()
    np.testing.assert_allclose(client.features(noise), expected, **CLOSE)
    np.testing.assert_allclose(client.features(list(noise[::-1])), expected[::-1], **CLOSE)


def test_files_and_bytes(client, task, noise, tmp_path):
    encoded = [tf.io.encode_png(x).numpy() for x in noise]
    for i, content in enumerate(encoded):
        (tmp_path / f"{i}.png").write_bytes(content)
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    expected = task.features(noise).numpy()
    for images in (encoded, paths, [str(p) for p in paths]):
        np.testing.assert_allclose(client.features(images), expected, **CLOSE)


def test_both_clients_agree(address, task, noise, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for path, image in zip(paths, noise, strict=False):
        path.write_bytes(tf.io.encode_png(image).numpy())
    expected = task.features(noise[:20]).numpy()

    async def asynchronous():
        async with kssl.AsyncFeatureClient(address, "rotation_digits", batch_size=6) as client:
            vectors = [vector async for vector in client.stream(map(str, paths))]
            pretext = await client.pretext(noise[:20])
            return np.array(vectors), await client.stages(noise[:20]), pretext

    with kssl.FeatureClient(address, "rotation_digits", batch_size=6) as client:
        features = np.array(list(client.stream(iter(noise[:20]))))
        stages, pretext = client.stages(noise[:20]), client.pretext(noise[:20])
    async_features, async_stages, async_pretext = asyncio.run(asynchronous())
    np.testing.assert_allclose(features, expected, **CLOSE)
    np.testing.assert_allclose(async_features, expected, **CLOSE)
    assert sorted(stages) == ["features", "stage1", "stage2"]
    np.testing.assert_allclose(stages["features"], expected, **CLOSE)
    for some, others in ((stages, async_stages), (pretext, async_pretext)):
        assert set(some) == set(others)
        for key in some:
            np.testing.assert_allclose(some[key], others[key], **CLOSE)


def test_requests_stay_under_the_message_limit(address, monkeypatch, noise):
    sizes = []
    client = kssl.FeatureClient(address, "rotation_digits", batch_size=10_000)
    send = client._stub.Predict
    monkeypatch.setattr(
        client._stub, "Predict", lambda m, **k: sizes.append(m.ByteSize()) or send(m, **k)
    )
    many = np.concatenate([noise] * 60)  # 7.4 MB
    assert client.features(many).shape == (2400, 8)
    assert len(sizes) == 3
    assert max(sizes) < 4 * 2**20
    client.close()


@pytest.mark.parametrize(
    ("images", "message"),
    [([], "at least one"), ("a.jpg", "got a single str; wrap it in a list"),
     (np.zeros((2, 32, 32, 3)), "uint8"),
     ([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)], "the same shape"),
     (np.zeros((2, 16, 32, 3), np.uint8), "must have the shape"), ([b"hello"], "Unknown image file format")],
)  # fmt: skip
def test_images_that_the_client_or_the_server_rejects(client, images, message):
    with pytest.raises(ValueError, match=message):
        client.features(images)


def test_exceptions_of_the_client(address, noise, tmp_path):
    with pytest.raises(ValueError, match=r"Servable not found for request: Latest\(nope\)"):
        kssl.FeatureClient(address, "nope").features(noise)
    with pytest.raises(ValueError, match=r"Specific\(rotation_digits, 7\)"):
        kssl.FeatureClient(address, "rotation_digits", version=7).features(noise)
    with pytest.raises(ConnectionError, match="keras-ssl serve"):
        kssl.FeatureClient("localhost:1", "m", retries=0).features(noise)
    with pytest.raises(TimeoutError, match="raise timeout"):
        kssl.FeatureClient(address, "rotation_digits", timeout=1e-6).features(noise)
    with pytest.raises(FileNotFoundError):
        kssl.FeatureClient(address, "rotation_digits").features([tmp_path / "none.jpg"])
    for arguments in ({"batch_size": 0}, {"timeout": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            kssl.FeatureClient(address, "m", **arguments)


def test_pretext_returns_large_images_for_small_ones(noise, tmp_path):
    keras.utils.set_random_seed(0)
    small = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    task = kssl.tasks.SuperResolution(small)
    kssl.export(task, tmp_path / "enlarge")
    with serving.Server(tmp_path) as server:
        client = kssl.FeatureClient(f"localhost:{server.port}", "enlarge", batch_size=16)
        prediction = client.pretext(noise)
        with pytest.raises(ValueError, match="images must contain at least one image"):
            client.pretext([])
        with pytest.raises(ValueError, match="must be"):
            client.pretext(noise.astype(np.float32))
        client.close()
    ((name, expected),) = task.prediction(noise).items()
    assert set(prediction) == {name}
    assert expected.shape == (40, 64, 64, 3)
    # Values are rounded to integers, so that a tiny difference can change one by 1.
    difference = prediction[name].astype(int) - expected.numpy()
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.999


def test_pretext_returns_the_predictions_of_the_task(client, task, noise):
    prediction = client.pretext(noise)
    assert set(prediction) == {"rotation"}
    expected = task.prediction(noise.astype(np.float32))["rotation"]
    np.testing.assert_allclose(prediction["rotation"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="images must all have the same shape"):
        client.pretext([noise[0], noise[1][:16]])
