"""`keras-ssl quickstart`: the whole workflow on scikit-learn's handwritten digits, offline."""

import time
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl import files, plotting
from keras_ssl.cli import common

EPOCHS = 15
LABELS = 0.1  # fraction of the labels for fine-tuning
SEEDS = 3  # fine-tuning on few labels is noisy: the medians of this many runs are compared


@click.command()
@click.option(
    "--out", default=".", show_default=True, help="Folder for saved_models/ and quickstart.png."
)
def quickstart(out):
    """Runs the whole workflow on handwritten digits.

    Pretrains, evaluates, exports, serves, queries and fine-tunes, in a few minutes and offline.
    """
    run(Path(out))


def run(folder):
    """Pretrains, evaluates, exports, serves, queries and fine-tunes, and checks every step.

    Args:
        folder: pathlib.Path for `saved_models/rotation_digits/<version>/` and `quickstart.png`.

    Raises:
        ValueError: there is no such folder, or it is not writable.
        RuntimeError: a step does not give the expected result; the message names it.
    """
    common.check_file("--out", folder / "quickstart.png")
    common.import_tensorflow()
    import keras

    start = time.time()
    keras.utils.set_random_seed(0)
    train, test = kssl.data.digits("train"), kssl.data.digits("test")
    task, untrained, history = _pretrain(train)
    best = _evaluate(task.encoder, untrained, train, test)
    path = _export(task, folder, best)
    served, difference = _query(path.parent, task, test)
    _heading(f"fine-tune from the SavedModel with {LABELS:.0%} of the labels, versus from scratch")
    tuned, scratch = _fine_tune(path, train, test)
    click.echo(f"from the SavedModel {tuned:.1%}, from scratch {scratch:.1%} (medians of {SEEDS})")
    _draw(folder / "quickstart.png", task, train, test, history, served)

    _heading("summary")
    plotting.print_table([
        ("on 360 unseen digits", "rotation", "untrained or from scratch"),
        ("kNN, best stage", f"{best['knn']:.1%}", f"{best['knn_untrained']:.1%}"),
        ("linear probe, best stage", f"{best['linear']:.1%}", f"{best['linear_untrained']:.1%}"),
        (f"fine-tuned on {LABELS:.0%} of the labels", f"{tuned:.1%}", f"{scratch:.1%}"),
        ("served features versus Keras", f"{difference:.1e}", "at most 1e-5"),
    ])  # fmt: skip
    click.echo(f"took {time.time() - start:.0f} s; look at {folder / 'quickstart.png'}")
    click.echo(f"next: keras-ssl serve {folder / 'saved_models'}")
    click.echo("      keras-ssl pretrain rotation --data FOLDER_OF_IMAGES --size 64")
    _check(best, tuned, scratch, difference <= 1e-5 * max(1, abs(served).max()))


def _heading(text):
    click.secho(f"\n{text}", bold=True)


def _pretrain(train):
    """Returns the trained task, its encoder before training, and the History of `fit`."""
    import keras

    _heading("pretrain: rotation prediction, without labels")
    encoder = kssl.encoders.resnet((32, 32, 3), width=16, blocks=(1, 1, 1))
    untrained = keras.models.clone_model(encoder)
    untrained.set_weights(encoder.get_weights())
    # Without mirroring, since a mirrored digit is not a digit.
    task = kssl.tasks.Rotation(encoder, flip=False)
    training = task.dataset(train, batch_size=64, epochs=EPOCHS)
    task.compile(task.default_optimizer(EPOCHS * training.steps_per_epoch))
    return task, untrained, task.fit(training, epochs=EPOCHS, verbose=2).history


def _evaluate(encoder, untrained, train, test):
    """Returns the accuracies of the best stage, a dict of floats."""
    _heading("evaluate: weighted kNN and linear probe, versus the untrained encoder")
    results = kssl.evaluation.compare(encoder, untrained, train, test)
    plotting.print_table(kssl.evaluation.table(results))
    return {
        name: max(row[name] for stage, row in results.items() if stage != "chance")
        for name in ("knn", "knn_untrained", "linear", "linear_untrained")
    }


def _export(task, folder, best):
    """Exports the task and returns the pathlib.Path of the version."""
    _heading("export: a SavedModel, checked in a graph Session")
    card = {
        "data": "scikit-learn digits, 1437 images enlarged to 32x32",
        "license": "CC BY 4.0 (data)",
        "budget": f"{EPOCHS} epochs",
        "best_stage_accuracy": best,
    }
    path = kssl.export(task, folder / "saved_models" / "rotation_digits", card)
    click.echo(path)
    return Path(path)


def _query(folder, task, test):
    """Requests the features of the test images; returns them and their largest difference to Keras."""
    from keras_ssl.serving import Server

    _heading("serve and query: features over gRPC, compared with Keras")
    pixels = kssl.data.to_arrays(test)["image"]
    with Server(folder) as server:
        client = kssl.FeatureClient(f"localhost:{server.port}", model=folder.name)
        served = client.features(pixels)
        client.close()
    difference = float(abs(served - task.features(pixels).numpy()).max())
    click.echo("{} x {} features, largest difference {:.1e}".format(*served.shape, difference))
    return served, difference


def _fine_tune(path, train, test):
    """Fine-tunes the export and the same network from scratch; returns their median test accuracies."""
    import keras
    import numpy as np

    train, test = kssl.data.to_arrays(train), kssl.data.to_arrays(test)
    tuned, scratch = [], []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(train["id"]))
        few = order[: int(LABELS * len(order))]
        labeled = train["image"][few], train["label"][few]
        keras.utils.set_random_seed(seed)
        tuned.append(_accuracy(kssl.load(path), *labeled, test))
        keras.utils.set_random_seed(seed)
        fresh = keras.models.clone_model(kssl.load(path))
        scratch.append(_accuracy(fresh, *labeled, test))
    return float(np.median(tuned)), float(np.median(scratch))


def _accuracy(encoder, images, labels, test):
    """Trains the encoder with a classifier on these images; returns the test accuracy."""
    import keras

    model = keras.Sequential([encoder, keras.layers.Dense(10)])
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(images, labels, batch_size=32, epochs=30, verbose=0)
    return model.evaluate(test["image"], test["label"], verbose=0)[1]


def _draw(path, task, train, test, history, served):
    """Writes the figure: inputs with labels, the learning curve, and nearest neighbors."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4.9), layout="constrained", dpi=110)
    left, middle, right = figure.subplots(1, 3, width_ratios=(4, 4, 6))
    x, y = next(task.dataset(train, 4).as_numpy_iterator())
    plotting.grid(task.preview(x, y), left, "what the network sees, and its labels")

    epochs = range(1, len(history["loss"]) + 1)
    middle.plot(epochs, history["loss"], color="C0")
    middle.set(xlabel="epoch", ylabel="pretext loss", box_aspect=1)
    middle.yaxis.label.set_color("C0")
    accuracy = middle.twinx()
    accuracy.plot(epochs, history["accuracy"], color="C1")
    accuracy.set(ylabel="pretext accuracy", ylim=(0.2, 1.02), box_aspect=1)
    accuracy.yaxis.label.set_color("C1")
    middle.set_title("pretraining", fontsize=9)

    title = "nearest neighbors by cosine similarity of the served features"
    plotting.grid(_neighbors(test, served), right, title)
    with files.complete(path) as draft:
        figure.savefig(draft)


def _neighbors(test, served):
    """Returns rows of a query and its nearest neighbors, for the digits 0, 2, 4, 6 and 8."""
    import numpy as np

    arrays = kssl.data.to_arrays(test)
    unit = served / np.linalg.norm(served, axis=1, keepdims=True)
    rows = []
    for label in range(0, 10, 2):
        query = int(np.flatnonzero(arrays["label"] == label)[0])
        order = np.argsort(-unit @ unit[query])[:6]
        captions = ["query"] + [f"{unit[i] @ unit[query]:.3f}" for i in order[1:]]
        rows.append([(arrays["image"][i], c) for i, c in zip(order, captions, strict=True)])
    return rows


def _check(best, tuned, scratch, served_like_keras):
    """Raises RuntimeError with a sentence for each step that does not give the expected result."""
    failed = [
        sentence
        for good, sentence in (
            (served_like_keras, "served features differ"),
            (best["knn"] > best["knn_untrained"], "kNN does not beat the untrained encoder"),
            (
                best["linear"] > best["linear_untrained"],
                "the linear probe does not beat the untrained encoder",
            ),
            (tuned > scratch, "fine-tuning does not beat training from scratch"),
        )
        if not good
    ]
    if failed:
        raise RuntimeError(f"quickstart failed: {'; '.join(failed)}")
