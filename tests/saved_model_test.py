"""Export and load: signatures, files, versions, and what can go wrong."""

import json
import os
import shutil
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import soak_export
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

import keras_ssl as kssl
from keras_ssl import files
from keras_ssl.serving.server.servable import Servable
from keras_ssl.zoo import versions


@pytest.fixture(scope="module")
def tiny_task():
    """A task that exports quickly."""
    return kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))


@pytest.fixture(scope="module")
def servable(exported):
    servable = Servable(exported / "1")
    yield servable
    servable.close()


def test_every_signature_computes_what_keras_computes(servable, task, noise):
    expected = task.features(noise).numpy()
    assert set(servable.signatures) == {
        "serving_default", "encoded", "stages", "pretext", "__saved_model_init_op",
    }  # fmt: skip
    close = dict(rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(servable.run({"images": noise})["features"], expected, **close)
    encoded = np.array([tf.io.encode_png(x).numpy() for x in noise])
    features = servable.run({"encoded": encoded}, "encoded")["features"]
    np.testing.assert_allclose(features, expected, **close)
    stages = kssl.encoders.stages(task.encoder)(noise, training=False)
    served = servable.run({"images": noise}, "stages")
    assert set(served) == {"stage1", "stage2", "features"}
    for name, value in served.items():
        np.testing.assert_allclose(value, stages[name], **close)
    logits = servable.run({"images": noise}, "pretext")["rotation"]
    np.testing.assert_allclose(logits, task.prediction(noise)["rotation"], **close)


def test_encoded_images_of_any_size_are_resized_as_by_from_folder(servable, tmp_path):
    rng = np.random.default_rng(0)
    for i, shape in enumerate([(50, 40, 3), (20, 90, 3), (1, 1, 3)]):
        tf.io.write_file(
            str(tmp_path / f"{i}.png"), tf.io.encode_png(rng.integers(0, 256, shape, np.uint8))
        )
    dataset = kssl.data.from_folder(tmp_path, size=32)
    pixels = kssl.data.to_arrays(dataset)["image"]
    encoded = np.array([Path(p).read_bytes() for p in dataset.paths])
    np.testing.assert_allclose(
        servable.run({"encoded": encoded}, "encoded")["features"],
        servable.run({"images": pixels})["features"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_encoded_checks_what_files_cost_in_the_graph(servable, exported):
    saved = saved_model_pb2.SavedModel.FromString((exported / "1/saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    nodes = [node for function in graph.library.function for node in function.node_def]
    operations = {node.op for node in [*graph.node, *nodes]}
    assert "DecodeImage" in operations
    assert not operations & {
        "PyFunc",
        "PyFuncStateless",
        "EagerPyFunc",
    }  # TensorFlow Serving has none
    png, black = tf.io.encode_png, tf.zeros((1, 200_000, 3), tf.uint8)
    features = servable.run({"encoded": np.array([png(black).numpy()])}, "encoded")["features"]
    pixels = servable.run({"images": np.zeros((1, 32, 32, 3), np.uint8)})["features"]
    np.testing.assert_allclose(features, pixels, rtol=1e-5, atol=1e-5)
    small = png(black[:, :1]).numpy()
    scans = tf.io.encode_jpeg(black[:, :64]).numpy() + b"\xff\xda" * 101
    for batch, words in (([small] * 1025, "at most 1024 files"), ([scans], "more than 100 scans")):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            servable.run({"encoded": np.array(batch, object)}, "encoded")


def test_an_empty_batch_is_an_invalid_argument(servable):
    with pytest.raises(tf.errors.InvalidArgumentError, match="images must not be empty"):
        servable.run({"images": np.zeros((0, 32, 32, 3), np.uint8)})
    with pytest.raises(tf.errors.InvalidArgumentError, match="encoded must not be empty"):
        servable.run({"encoded": np.array([], object)}, "encoded")


def test_wrong_shapes_do_not_abort_the_process(exported, tmp_path):
    # Session.run checks declared shapes and TensorFlow Serving does not: remove them.
    shutil.copytree(exported / "1", tmp_path / "1")
    file = tmp_path / "1" / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for node in saved.meta_graphs[0].graph_def.node:
        if node.op == "Placeholder":
            node.attr["shape"].shape.CopyFrom(tf.TensorShape(None).as_proto())
            node.attr.pop("_output_shapes", None)
    file.write_bytes(saved.SerializeToString())
    (tmp_path / "1" / "assets.extra" / "checksums.json").unlink()
    servable = Servable(tmp_path / "1")
    for shape in ((32, 32, 3), (1, 16, 32, 3), (1, 1, 32, 32, 3), (32,)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with expected"):
            servable.run({"images": np.zeros(shape, np.uint8)})
    servable.close()


def test_the_train_endpoint_fine_tunes_and_is_not_a_signature(exported, noise):
    loaded = tf.saved_model.load(str(exported / "1"))
    assert "train" not in loaded.signatures  # clients must not update the moving averages
    assert len(loaded.encoder_variables) > len(loaded.encoder_trainable_variables)
    before = loaded.signatures["serving_default"](images=tf.constant(noise))["features"].numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(loaded.train(tf.constant(noise))["features"])
    gradients = tape.gradient(loss, loaded.encoder_trainable_variables)
    assert all(g is not None for g in gradients)
    after = loaded.signatures["serving_default"](images=tf.constant(noise))["features"].numpy()
    assert np.abs(after - before).max() > 1e-4  # the moving averages were updated


def test_files_in_assets_extra(exported):
    extra = exported / "1" / "assets.extra"
    card = json.loads((extra / "card.json").read_text())
    assert (card["task"], card["paper"], card["data"]) == (
        "rotation",
        "Gidaris et al. 2018",
        "digits",
    )
    assert card["features"] == 8
    records = tf.data.TFRecordDataset(str(extra / "tf_serving_warmup_requests")).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records]
    assert {r.model_spec.signature_name for r in requests} == {
        "serving_default", "encoded", "stages", "pretext",
    }  # fmt: skip
    assert {r.model_spec.name for r in requests} == {"rotation_digits"}
    assert "weights" not in (extra / "encoder.json").read_text()
    assert (exported / "1").stat().st_mode & 0o055 == 0o055  # the server runs as another user


def test_the_server_may_be_another_user_whatever_the_umask(tiny_task, tmp_path):
    before = os.umask(0o077)
    try:
        version = Path(kssl.export(tiny_task, tmp_path / "models" / "m"))
    finally:
        os.umask(before)
    for path in (version.parent.parent, version.parent, version, *version.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    assert len(list(version.rglob("*"))) >= 9


def test_a_file_with_the_number_of_the_next_version(tiny_task, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").write_text("no version")
    (tmp_path / "3").symlink_to("nowhere")
    assert kssl.export(tiny_task, tmp_path) == str(tmp_path / "4")
    assert (tmp_path / "2").read_text() == "no version"


def test_load_returns_a_trainable_encoder(exported, task, noise):
    for path in (exported, exported / "1"):
        encoder = kssl.load(path)
        np.testing.assert_allclose(encoder(noise), task.features(noise), rtol=1e-5, atol=1e-5)
    before = encoder.get_weights()
    model = keras.Sequential([encoder, keras.layers.Dense(2)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(noise, np.arange(40) % 2, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    changed = [(a != b).any() for a, b in zip(before, encoder.get_weights(), strict=True)]
    assert all(changed)


def test_mixed_precision_is_exported_in_float32(tmp_path, noise):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,)))
    finally:
        keras.config.set_dtype_policy("float32")
    task.compile("sgd")
    task.fit(task.dataset(kssl.data.from_array(noise), 20), verbose=0)
    encoder = kssl.load(kssl.export(task, tmp_path / "m"))
    assert {layer.compute_dtype for layer in encoder.layers} == {"float32"}
    difference = np.abs(encoder(noise) - task.features(noise).numpy()).max()
    assert 1e-7 < difference < 0.05


def test_the_next_version_and_drafts_of_killed_exports(tiny_task, tmp_path):
    for name in ("7", "9x", ".export-old"):
        (tmp_path / name).mkdir()
    for name, hours in ((".export-killed", 25), (".export-running", 1)):
        (tmp_path / name / "variables").mkdir(parents=True)
        os.utime(tmp_path / name, (time.time() - hours * 3600,) * 2)
    assert list(versions(tmp_path)) == [7]
    assert kssl.export(tiny_task, tmp_path) == str(tmp_path / "8")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".export-old", ".export-running", "7", "8", "9x",
    ]  # fmt: skip


def test_two_exports_remove_old_drafts_at_the_same_time(tiny_task, tmp_path, monkeypatch):
    for name in (".export-a", ".export-b"):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - 25 * 3600,) * 2)
    remove = shutil.rmtree

    def remove_all(path, **options):  # the other export is as fast
        for draft in (
            tmp_path.glob(".export-[ab]") if path.name in (".export-a", ".export-b") else [path]
        ):
            remove(draft, **options)

    monkeypatch.setattr(shutil, "rmtree", remove_all)
    assert kssl.export(tiny_task, tmp_path) == str(tmp_path / "1")
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_version_that_differs_from_keras_never_appears(tiny_task, tmp_path, monkeypatch):
    monkeypatch.setattr(Servable, "run", lambda *_: {"features": np.ones((4, 2))})
    with pytest.raises(RuntimeError, match="differs from Keras"):
        kssl.export(tiny_task, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_a_version_is_on_the_disk_before_it_appears(tiny_task, tmp_path, monkeypatch):
    """Otherwise a power failure could leave a version with empty files, or one that others may not read."""
    synced, renamed = [], []  # (path, mode)
    sync, rename = files.sync, os.rename

    def record(path):
        synced.append((Path(path), Path(path).stat().st_mode & 0o777))
        sync(path)

    monkeypatch.setattr(files, "sync", record)
    monkeypatch.setattr(
        os, "rename", lambda old, new: (renamed.append(list(synced)), rename(old, new))
    )
    mask = os.umask(0o077)
    try:
        version = Path(kssl.export(tiny_task, tmp_path / "models" / "model"))
    finally:
        os.umask(mask)
    (before,) = renamed
    inner, outer, *own, (draft, _) = before
    # The names of the new folders, and, once these are for all, their modes.
    assert (inner[0], outer[0]) == (version.parent.parent, tmp_path)
    assert own[:2] == [(version.parent, 0o755), (version.parent.parent, 0o755)]
    written = {path.relative_to(version) for path in version.rglob("*")}
    assert {path.relative_to(draft) for path, _ in own[2:]} == written
    assert [path for path, _ in synced[len(before) :]] == [version.parent]


def test_an_export_that_fails_leaves_no_folder(tiny_task, tmp_path):
    path = tmp_path / "models" / "rotation"
    with pytest.raises(ValueError, match=r"card must be a dict, got \[1\]"):
        kssl.export(tiny_task, path, card=[1])
    with pytest.raises(TypeError, match="not JSON serializable"):
        kssl.export(tiny_task, path, card={"data": {1}})
    assert not list(tmp_path.iterdir())


def test_invalid_arguments(tmp_path, task):
    free = kssl.tasks.Rotation(kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,)))
    for bad in (free, task.encoder, None):
        with pytest.raises(ValueError, match="task must be|encoder must take"):
            kssl.export(bad, tmp_path / "m")
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="encoder.json"):
        kssl.load(tmp_path)
    with pytest.raises(ValueError, match="no SavedModel"):
        Servable(tmp_path)


def test_killed_exports_leave_only_complete_versions(tmp_path):
    """The short form of `tools/soak_export.py`."""
    soak_export.kill_one(tmp_path, moment=0.4, count=2)
    assert soak_export.check(tmp_path) >= 2
