"""Figures of predictions, as TensorBoard reads them."""

import pytest
import tensorflow as tf
from tensorflow.core.util import event_pb2

import keras_ssl as kssl
from keras_ssl.callbacks import Pictures


def test_a_figure_after_each_epoch(images, tmp_path):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    task = kssl.tasks.Inpainting(encoder, filters=2)
    task.compile("adam")
    drawn = Pictures(tmp_path, images, number=4)
    task.fit(task.dataset(images, 20, epochs=2), epochs=2, callbacks=[drawn], verbose=0)
    (file,) = tmp_path.rglob("events*")
    seen = []
    for record in tf.data.TFRecordDataset(str(file)):
        event = event_pb2.Event.FromString(record.numpy())
        for value in event.summary.value:
            width, height, encoded = value.tensor.string_val
            pixels = tf.io.decode_png(encoded).numpy()
            assert pixels.shape[:2] == (int(height), int(width))
            seen.append((value.tag, event.step, pixels))
    assert [(tag, step) for tag, step, _ in seen] == [("predictions", 0), ("predictions", 1)]
    assert seen[0][2].std() > 10
    assert (seen[0][2] != seen[1][2]).any()  # the predictions have changed
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        Pictures(tmp_path, images, number=0)
