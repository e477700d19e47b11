import keras
import numpy as np
import tensorflow as tf

from keras_ssl.losses import Distillation


def test_equals_a_slow_loop_and_trains_the_student_only():
    maps = np.random.default_rng(0).normal(size=(3, 2, 4, 5, 6)).astype(np.float32)
    expected = []
    for student, teacher in maps:
        total = 0.0
        for index in np.ndindex(student.shape):
            total += (float(student[index]) - float(teacher[index])) ** 2
        expected.append(total / student.size)
    maps = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = Distillation(reduction="none")(np.zeros(3), maps)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = tape.gradient(loss, maps)
    difference = maps[:, 0] - maps[:, 1]
    np.testing.assert_allclose(gradient[:, 0], 2 * difference / 120, rtol=1e-5)
    assert not np.any(gradient[:, 1])


def test_16_bits_are_squared_in_float32():
    maps = tf.constant([[300.0, 0.0]], tf.float16)[:, :, None, None, None]
    assert float(Distillation()([0], maps)) == 90000  # the largest number of float16 is 65504


def test_serializes():
    assert isinstance(
        keras.losses.deserialize(keras.losses.serialize(Distillation())), Distillation
    )
