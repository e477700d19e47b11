import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.cli.settings import make_task
from keras_ssl.ops import depth


def resnet(size=(32, 32, 3), **arguments):
    return kssl.encoders.resnet(size, **{"width": 2, "blocks": (1, 1), **arguments})


@pytest.fixture(scope="module")
def teacher(noise):
    """With statistics of batch normalization that are not those of a batch."""
    keras.utils.set_random_seed(0)  # the same whichever tests run before
    network = resnet()
    network(noise, training=True)
    return network


@pytest.fixture(scope="module")
def batch(noise):
    distance = np.random.default_rng(1).uniform(1, 9, (6, 32, 32, 1)).astype(np.float32)
    distance[:, :2, 5:] = np.nan
    return {"image": noise[:6], "depth": distance, "id": np.arange(6)}


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_loss_is_the_distance_of_the_maps(teacher, batch, stage):
    encoder = resnet()
    task = kssl.tasks.DepthDistillation(encoder, teacher, stage)
    x, y = task.pretext(batch, seeds(6))
    np.testing.assert_array_equal(y, batch["id"])
    y_pred = task(x, training=False)
    of = (
        kssl.encoders.maps(encoder)(x["depth"])[stage],
        kssl.encoders.maps(teacher)(x["image"])[stage],
    )
    for k in (0, 1):
        np.testing.assert_allclose(y_pred[:, k], of[k], rtol=1e-4, atol=1e-5)
    expected = np.mean((of[0] - of[1]) ** 2)
    assert float(task.default_loss()(y, y_pred)) == pytest.approx(expected, rel=1e-4)


def test_the_teacher_is_not_changed_and_its_statistics_are_not_those_of_the_batch(teacher, batch):
    task = kssl.tasks.DepthDistillation(resnet(), teacher)
    x, y = task.pretext(batch, seeds(6))
    before = [w.copy() for w in teacher.get_weights()]
    own = [w.copy() for w in task.teacher.get_weights()]
    start = task.encoder.get_weights()
    alone = task({name: part[:1] for name, part in x.items()}, training=True)
    task.encoder.set_weights(start)
    together = task(x, training=True)
    np.testing.assert_allclose(alone[0, 1], together[0, 1], rtol=1e-4, atol=1e-5)
    assert np.abs(alone[0, 0] - together[0, 0]).max() > 0.01  # the student's follow the batch
    task.compile(keras.optimizers.SGD(0.1, weight_decay=0.1), run_eagerly=True)
    task.train_on_batch(x, y)
    for a, b, c in zip(before, own, task.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(b, c)
    trained = {id(v) for v in task.trainable_variables}
    assert trained == {id(v) for v in task.encoder.trainable_variables}
    assert teacher.trainable_variables  # the user's own can still be fine-tuned


def test_a_student_that_sees_what_the_teacher_sees_has_no_loss(teacher, batch):
    """With the teacher's weights and the image as its input."""
    task = kssl.tasks.DepthDistillation(teacher, teacher)
    x, y = task.pretext(batch, seeds(6))
    same = task({"image": x["image"], "depth": x["image"]})
    assert float(task.default_loss()(y, same)) == pytest.approx(0, abs=1e-9)


def test_learns_from_depth_what_the_teacher_sees(teacher):
    """The depth map contains the image, so the features can be learned."""
    keras.utils.set_random_seed(0)
    gray = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1)).astype(np.float32)
    gray = tf.image.resize(gray, (32, 32), "nearest").numpy()
    distance = (2 ** (gray / 85)).astype(np.float32)
    images = kssl.data.from_array(gray.repeat(3, -1).astype(np.uint8), depth=distance)
    task = kssl.tasks.DepthDistillation(resnet(), teacher)
    task.compile(keras.optimizers.Adam(1e-2))
    losses = task.fit(task.dataset(images, 16, epochs=12), epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 3


def test_layers_behind_the_stage_keep_their_weights(teacher, batch):
    task = kssl.tasks.DepthDistillation(resnet(), teacher, "stage1")
    x, y = task.pretext(batch, seeds(6))
    before = [v.numpy() for v in task.encoder.variables]
    task.compile(keras.optimizers.SGD(0.1, weight_decay=0.1), run_eagerly=True)
    with pytest.warns(UserWarning, match="Gradients do not exist for variables"):
        task.train_on_batch(x, y)
    moved = [
        np.any(v.numpy() != old) for v, old in zip(task.encoder.variables, before, strict=True)
    ]
    first = len(task.student_map.variables)
    assert all(moved[:first])
    assert not any(moved[first:])
    assert first < len(moved)


def test_save_and_export(teacher, batch, tmp_path):
    task = kssl.tasks.DepthDistillation(resnet(), teacher, "stage1", near=1.0)
    x, _ = task.pretext(batch, seeds(6))
    expected = task(x)
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    np.testing.assert_array_equal(copy(x), expected)
    assert (copy.stage, copy.near) == ("stage1", 1.0)
    assert not {v.path for v in copy.teacher.variables if v.trainable}
    path = kssl.export(task, tmp_path / "student")
    assert kssl.load(path).count_params() == task.encoder.count_params()
    pixels = depth.to_image(batch["depth"], 1.0, 100.0)
    np.testing.assert_allclose(kssl.load(path)(pixels), task.encoder(pixels), rtol=1e-5, atol=1e-5)
    # Nothing of the teacher is in it.
    saved = dict(tf.train.list_variables(f"{path}/variables/variables"))
    numbers = sum(np.prod(shape) for name, shape in saved.items() if ".ATTRIBUTES" in name)
    assert numbers <= task.encoder.count_params() + 10


def test_preview_shows_where_both_respond(teacher, batch):
    task = kssl.tasks.DepthDistillation(resnet(), teacher)
    x, y = task.pretext(batch, seeds(6))
    (row, *_) = task.preview(x, y, np.asarray(task(x)))
    assert len(row) == 4
    assert row[2][0].shape == row[3][0].shape == (16, 16, 1)
    assert max(row[2][0].max(), row[3][0].max()) == pytest.approx(255)
    assert len(task.preview(x, y)[0]) == 2


@pytest.mark.parametrize(
    ("encoder", "other", "arguments", "message"),
    [
        ({"width": 3}, {}, {}, r"encoder must have the teacher's stage2 of \(16, 16, 4\), got \(16, 16, 6\)"),
        ({}, {"size": (16, 16, 3)}, {}, r"teacher must take images of the encoder's size, \(32, 32\), got"),
        ({}, {"blocks": (1,)}, {}, r"which have \['stage1', 'stage2'\] and \['stage1'\], got"),
        ({}, {}, {"stage": "features"}, "got 'features'"),
        ({}, {}, {"stage": 2}, "got 2"),
        ({"size": (32, 32, 1)}, {}, {}, "encoder must take images"),
        ({}, {}, {"near": 9, "far": 3}, "near must be less than far, got 9 and 3"),
    ],
)  # fmt: skip
def test_refuses(encoder, other, arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.tasks.DepthDistillation(resnet(**encoder), resnet(**other), **arguments)


def test_refuses_a_teacher_that_is_no_network(teacher):
    with pytest.raises(ValueError, match="encoder must be a functional keras.Model"):
        kssl.tasks.DepthDistillation(resnet(), "simclr_cifar10")


def test_the_command_sends_to_python(teacher):
    with pytest.raises(
        ValueError, match="depth_distillation needs a teacher, .* docs/crossmodal.md"
    ):
        make_task("depth_distillation", teacher, [], None)
    assert type(make_task("rgb_depth", teacher, ["near=1"], None)) is kssl.tasks.RGBDepth
