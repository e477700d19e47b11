"""`keras-ssl extract`: computes the features of a folder of images or videos."""

import sys
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl import files
from keras_ssl.cli import common


@click.command()
@click.argument("folder")
@click.option("--out", default="features.npz", show_default=True, help="The .npz file to write.")
@click.option(
    "--model", help="An export or .keras file, run here; with --server the model's name there."
)
@common.import_option
@click.option("--server", metavar="HOST:PORT", help="Send the images to this server over gRPC.")
@common.clip_options
@click.option(
    "--pool",
    default="mean",
    show_default=True,
    type=click.Choice(["mean", "concat"]),
    help="Average or concatenate the features of a clip's frames.",
)
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1))
@click.option(
    "--retries",
    default=5,
    show_default=True,
    type=click.IntRange(0),
    help="Of a request while the server is away.",
)
@click.option("--ca", metavar="FILE", help="TLS: PEM of the authority that signed the server's.")
@click.option("--certificate", metavar="FILE", help="Mutual TLS: PEM of this client.")
@click.option("--key", metavar="FILE", help="Mutual TLS: PEM of the certificate's private key.")
def extract(
    folder,
    out,
    model,
    modules,
    server,
    frames,
    stride,
    cache,
    pool,
    batch_size,
    retries,
    ca,
    certificate,
    key,
):
    """Computes the features of a folder of images or videos.

    Writes them to an .npz: of videos a row for each frame, or with --frames N for each clip of N frames, with
    its time in seconds. With --server, the same command resumes an interrupted extraction.
    """
    if not model:
        raise ValueError("--model is missing: an export such as saved_models/rotation_cifar10")
    if not Path(folder).is_dir():
        raise ValueError(f"FOLDER: there is no folder {folder!r}")
    common.check_file("--out", out)
    if cache:
        common.check_folder("--cache", cache)
    if server and modules:
        raise ValueError(f"--import {modules[0]} has no effect with --server, which has the model")
    if not server:
        if ca or certificate or key:
            raise ValueError("--ca, --certificate and --key need --server")
        common.check_model(model)

    common.import_tensorflow()
    from keras_ssl.data import video_files

    if frames or stride or cache or video_files.holds_videos(folder):
        frames, stride = frames or 1, stride or 1

        def clips_of(size):
            return kssl.data.from_videos(
                folder, frames, stride, size, step=frames * stride, cache=cache
            )

    else:
        clips_of = None
    if server:
        from keras_ssl import serving

        tls = serving.credentials(ca, certificate, key) if ca or certificate or key else None
        with kssl.FeatureClient(
            server, model, batch_size=batch_size, retries=retries, credentials=tls
        ) as client:
            if clips_of:
                clips = clips_of(client.input_size())
                shape = serving.extract_clips(client, clips, out, pool, progress=True)
            else:
                paths = kssl.data.folder.image_files(folder)
                shape = serving.extract(client, paths, out, progress=True)
    else:
        shape = _extract_here(folder, clips_of, pool, out, model, modules, batch_size)
    click.echo("wrote {}: {} x {}".format(out, *shape))


def _extract_here(folder, clips_of, pool, out, model, modules, batch_size):
    """Computes the features in this process, writes them, and returns their shape."""
    import numpy as np

    from keras_ssl.evaluation.extract import map_batches, traced

    _, encoder = common.load_model(model, modules)
    size = encoder.input_shape[1:3]
    dataset = clips_of(size) if clips_of else kssl.data.from_folder(folder, size)
    paths, batches = dataset.paths, dataset.batch(batch_size).prefetch(2)
    column, pool = ("frames", pool) if "frames" in batches.element_spec else ("image", None)
    features_of = traced(encoder, batches.element_spec[column], pool)
    features = map_batches(
        lambda batch: features_of(batch[column]), batches, verbose=int(sys.stdout.isatty())
    )
    columns = {"time": dataset.columns["time"].numpy()} if clips_of else {}
    with files.complete(out) as draft, open(draft, "wb") as file:
        np.savez(file, id=np.arange(len(paths)), path=paths, features=features, **columns)
    return features.shape
