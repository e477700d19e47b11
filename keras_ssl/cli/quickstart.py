"""The whole path once, on scikit-learn's handwritten digits; nothing is downloaded."""

import time

import click
import keras
import numpy as np
from matplotlib.figure import Figure

import keras_ssl as kssl
from keras_ssl import plotting
from keras_ssl.cli import print_table
from keras_ssl.serving import Server
from keras_ssl.training.optimizers import sgd_cosine

EPOCHS = 15
LABELS = 0.1  # the share of labels that fine-tuning gets
SEEDS = 3  # fine-tuning on few labels is noisy: the median of this many runs is compared


def quickstart(folder):
    """Pretrains, judges, exports, serves, queries and fine-tunes, and checks every step.

    Args:
        folder: pathlib.Path for `saved_models/rotation_digits/<version>/` and `quickstart.png`.

    Raises:
        ValueError: there is no such folder.
        RuntimeError: a step does not give what it must (see the message).
    """
    if not folder.is_dir():
        raise ValueError(f"--out: there is no folder {str(folder)!r}")
    start = time.time()
    keras.utils.set_random_seed(0)
    train, test = kssl.data.digits("train"), kssl.data.digits("test")

    _say("pretrain: rotation prediction, without labels")
    encoder = kssl.encoders.resnet((32, 32, 3), width=16, blocks=(1, 1, 1))
    untrained = keras.models.clone_model(encoder)
    untrained.set_weights(encoder.get_weights())
    # A mirrored digit is no digit; photographs would be mirrored.
    task = kssl.tasks.Rotation(encoder, flip=False)
    training = task.dataset(train, batch_size=64, epochs=EPOCHS)
    task.compile(sgd_cosine(0.1, EPOCHS * training.steps_per_epoch))
    history = task.fit(training, epochs=EPOCHS, verbose=2).history

    _say("judge: weighted kNN and linear probe, beside the same encoder untrained")
    results = kssl.evaluation.compare(encoder, untrained, train, test)
    print_table(kssl.evaluation.table(results))

    _say("export: a SavedModel, checked in a graph Session")
    best = {name: max(row[name] for stage, row in results.items() if stage != "chance")
            for name in ("knn", "knn_untrained", "linear", "linear_untrained")}  # fmt: skip
    card = {
        "data": "scikit-learn digits, 1437 pictures enlarged to 32x32",
        "licence": "CC BY 4.0 (data)",
        "budget": f"{EPOCHS} epochs",
        "best_stage_accuracy": best,
    }
    path = kssl.export(task, folder / "saved_models" / "rotation_digits", card)
    click.echo(path)

    _say("serve and query: features over gRPC, compared with Keras")
    pixels = kssl.data.to_arrays(test)["image"]
    with Server(folder / "saved_models" / "rotation_digits") as server:
        client = kssl.FeatureClient(f"localhost:{server.port}", model="rotation_digits")
        served = client.features(pixels)
        client.close()
    difference = float(np.abs(served - task.features(pixels).numpy()).max())
    click.echo(
        f"{served.shape[0]} x {served.shape[1]} features, largest difference {difference:.1e}"
    )

    _say(f"fine-tune from the SavedModel with {LABELS:.0%} of the labels, beside from scratch")
    tuned, scratch = _fine_tune(path, train, test)
    click.echo(f"from the SavedModel {tuned:.1%}, from scratch {scratch:.1%} (medians of {SEEDS})")

    _picture(folder / "quickstart.png", task, train, test, history, served)
    _say("summary")
    print_table([
        ("on 360 unseen digits", "rotation", "untrained or from scratch"),
        ("kNN, best stage", f"{best['knn']:.1%}", f"{best['knn_untrained']:.1%}"),
        ("linear probe, best stage", f"{best['linear']:.1%}", f"{best['linear_untrained']:.1%}"),
        (f"fine-tuned on {LABELS:.0%} of the labels", f"{tuned:.1%}", f"{scratch:.1%}"),
        ("served features against Keras", f"{difference:.1e}", "at most 1e-5"),
    ])  # fmt: skip
    click.echo(f"took {time.time() - start:.0f} s; look at {folder / 'quickstart.png'}")
    click.echo(f"next: keras-ssl serve {folder / 'saved_models'}")
    click.echo("      keras-ssl pretrain rotation --data FOLDER_OF_PICTURES --size 64")

    failed = [
        sentence
        for wrong, sentence in (
            (not difference <= 1e-5 * max(1, np.abs(served).max()), "served features differ"),
            (not best["knn"] > best["knn_untrained"], "kNN does not beat the untrained encoder"),
            (not best["linear"] > best["linear_untrained"], "the linear probe does not either"),
            (not tuned > scratch, "fine-tuning does not beat training from scratch"),
        )
        if wrong
    ]
    if failed:
        raise RuntimeError(f"quickstart failed: {'; '.join(failed)}")


def _say(words):
    click.secho(f"\n{words}", bold=True)


def _fine_tune(path, train, test):
    """Median test accuracies of fine-tuning the export and of the same network from scratch."""
    train, test = kssl.data.to_arrays(train), kssl.data.to_arrays(test)
    accuracies = ([], [])
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(train["id"]))
        few = order[: int(LABELS * len(order))]
        for kind in (0, 1):
            keras.utils.set_random_seed(seed)
            encoder = kssl.load(path)
            if kind == 1:
                encoder = keras.models.clone_model(encoder)
            model = keras.Sequential([encoder, keras.layers.Dense(10)])
            model.compile(
                keras.optimizers.Adam(1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
                jit_compile=False,
            )
            model.fit(train["image"][few], train["label"][few], batch_size=32, epochs=30, verbose=0)
            accuracy = model.evaluate(test["image"], test["label"], verbose=0)[1]
            accuracies[kind].append(accuracy)
    return tuple(float(np.median(a)) for a in accuracies)


def _picture(path, task, train, test, history, served):
    """Pretext examples, the learning curve, and nearest neighbours by the served features."""
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

    arrays = kssl.data.to_arrays(test)
    unit = served / np.linalg.norm(served, axis=1, keepdims=True)
    rows = []
    for label in range(0, 10, 2):
        query = int(np.flatnonzero(arrays["label"] == label)[0])
        order = np.argsort(-unit @ unit[query])[:6]
        captions = ["query"] + [f"{unit[i] @ unit[query]:.3f}" for i in order[1:]]
        rows.append([(arrays["image"][i], c) for i, c in zip(order, captions, strict=True)])
    plotting.grid(rows, right, "nearest neighbours by cosine of the served features")
    figure.savefig(path)
