"""Files for the embedding projector, read by TensorBoard's own plugin."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

import keras_ssl as kssl
from keras_ssl.callbacks import Projector
from keras_ssl.callbacks.projector import metadata, sprite


class Runs:
    """Data provider of a log directory without runs."""

    def list_runs(self, context, *, experiment_id):
        return []


def shown(log_dir, route, **query):
    """Response of TensorBoard's own plugin."""
    plugin = ProjectorPlugin(TBContext(logdir=str(log_dir), data_provider=Runs()))
    answer = Client(plugin.get_plugin_apps()[route]).get("/", query_string={"run": ".", **query})
    assert answer.status_code == 200, answer.data
    return answer.data


def test_tensorboard_shows_the_features(images, tmp_path, linear_task):
    logs = tmp_path / "deep" / "logs"
    images = images.map(lambda e: {**e, "label": e["label"] % 2})
    images.class_names = ["even\tnumbers", "odd"]
    linear_task.compile(keras.optimizers.SGD(0.01))
    callbacks = [Projector(logs, images, number=11)]
    linear_task.fit(
        linear_task.dataset(images, 20, epochs=2), epochs=2, callbacks=callbacks, verbose=0
    )
    names = {"features.tsv", "metadata.tsv", "projector_config.pbtxt", "sprite.png"}
    assert {path.name for path in logs.iterdir()} == names
    config = text_format.Parse((logs / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    assert list(embedding.sprite.single_image_dim) == [32, 32]

    (response,) = json.loads(shown(logs, "/info"))["embeddings"]
    assert response["tensorShape"] == [11, 4]
    rows = kssl.data.to_arrays(images)
    tensor = np.frombuffer(shown(logs, "/tensor", name="features"), np.float32).reshape(11, 4)
    np.testing.assert_allclose(
        tensor, linear_task.features(rows["image"][:11]), rtol=1e-5, atol=1e-6
    )
    lines = shown(logs, "/metadata", name="features").decode().splitlines()
    expected = [f"{('even numbers', 'odd')[k]}\t{id}" for id, k in enumerate(rows["label"][:11])]
    assert lines == ["label\tid", *expected]
    sheet = tf.io.decode_png(shown(logs, "/sprite_image", name="features")).numpy()
    columns = sheet.shape[1] // 32  # as the plugin counts
    for i in range(11):
        top, left = 32 * (i // columns), 32 * (i % columns)
        np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], rows["image"][i])


def test_images_without_labels(images, tmp_path, linear_task):
    bare = images.map(lambda e: {"image": e["image"], "id": e["id"] + 5})
    projector = Projector(tmp_path, bare, number=3)
    projector.set_model(linear_task)
    projector.on_train_begin()
    projector.on_epoch_end(0)
    assert shown(tmp_path, "/metadata", name="features").decode() == "5\n6\n7\n"
    assert metadata([4, 9], [0, 2]) == "label\tid\n0\t4\n2\t9\n"


def test_thumbnails_keep_the_aspect_ratio():
    ramp = np.linspace(0, 255, 300, dtype=np.float32)
    images = np.stack([np.tile(ramp * k / 4, (150, 1)) for k in range(5)])[..., None]
    sheet, (width, height) = sprite(images.repeat(4, axis=-1))
    assert (width, height) == (64, 32)
    assert sheet.shape == (3 * 32, 3 * 64, 3)
    for k in range(5):
        top, left = 32 * (k // 3), 64 * (k % 3)
        row = sheet[top + 16, left : left + 64, 2].astype(float)
        np.testing.assert_allclose(row, (np.arange(64) + 0.5) / 64 * 255 * k / 4, atol=3)
    assert (sheet[32:64, 128:] == 0).all()
    assert (sheet[64:] == 0).all()


def test_invalid_arguments(tmp_path, images):
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        Projector(tmp_path, images, number=0)
