"""`keras-ssl extract`: computes the features of a folder of images or videos."""

import contextlib
import functools
import sys
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl import files
from keras_ssl.cli import common, table_options
from keras_ssl.tables import ray_cluster, store


@click.command()
@click.argument("folder")
@click.option(
    "--out",
    default="features.npz",
    show_default=True,
    help="The .npz file to write, or the .lance table.",
)
@click.option(
    "--model", help="An export or .keras file; with --server the model's name on the server."
)
@common.import_option
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
    "--engine",
    type=click.Choice(["ray"]),
    help="Encode to a table on all processors of this machine or of a cluster.",
)
@click.option(
    "--address", metavar="HOST:PORT", help="Address of a running Ray cluster; needs --engine."
)
@table_options.server_options
def extract(
    folder, out, model, modules, frames, stride, cache, pool, batch_size, engine, address, server,
    retries, **tls,
):  # fmt: skip
    """Computes the features of a folder of images, videos or TFRecords.

    Writes them to an .npz, or to a table if --out ends in .lance. Videos get a row per frame or, with
    --frames N, per clip of N frames, with its time in seconds. The same command resumes an interrupted
    extraction if it writes to a table or uses --server. A table is brought up to date: only new and changed
    files are encoded, and the rows of files that no longer exist are removed.
    """
    if not model:
        raise ValueError("--model is missing: an export such as saved_models/rotation_cifar10")
    if not Path(folder).is_dir():
        raise ValueError(f"FOLDER: there is no folder {folder!r}")
    _check_out(out)
    if cache:
        common.check_folder("--cache", cache)
    if server and modules:
        raise ValueError(f"--import {modules[0]} has no effect with --server, which has the model")
    table_options.check_model(model, server, tls)
    _check_engine(engine, address, out, server)

    common.import_tensorflow()
    from keras_ssl.data import video_files

    clips_of, has_records = None, False
    if frames or stride or cache or video_files.holds_videos(folder):
        frames, stride = frames or 1, stride or 1

        def clips_of(size):
            return kssl.data.from_videos(
                folder, frames, stride, size, step=frames * stride, cache=cache
            )

    else:
        has_records = _has_records(folder, out)
    if engine:
        if clips_of or has_records:
            raise ValueError("--engine ray reads folders of images only: leave it out")
        click.echo(f"{out}: {_update_by_ray(folder, out, model, modules, batch_size, address)}")
        return
    with contextlib.ExitStack() as stack:
        client = None
        if server:
            client = stack.enter_context(
                table_options.connect(server, model, retries, tls, batch_size)
            )
        if out.endswith(store.SUFFIX):
            clip = frames, stride, pool
            counts = _update(
                folder, clips_of, has_records, clip, out, client, model, modules, batch_size
            )
            click.echo(f"{out}: {counts}")
            return
        if client:
            shape = _extract_there(folder, clips_of, pool, out, client)
        else:
            shape = _extract_here(folder, clips_of, pool, out, model, modules, batch_size)
    click.echo("wrote {}: {} x {}".format(out, *shape))


def _check_out(out):
    """Raises ValueError unless `--out` can be written, and, for a table, LanceDB is installed."""
    if not out.endswith(store.SUFFIX):
        common.check_file("--out", out)
        return
    store.check_path("--out", out)
    if not store.is_remote(out):
        common.check_folder("--out", str(Path(out).absolute().parent))
    store.lancedb()


def _has_records(folder, out):
    """Returns whether a folder holds TFRecords, and no images."""
    from keras_ssl.data import records
    from keras_ssl.data.folder import walk
    from keras_ssl.ops import decode

    if not records.record_files(folder):
        return False
    images, _ = walk(Path(folder), decode.SUFFIXES)
    if not images and not out.endswith(store.SUFFIX):
        raise ValueError(
            f"--out must be a table, such as features.lance, for TFRecords, got {out!r}"
        )
    if images and out.endswith(store.SUFFIX):
        raise ValueError(
            f"FOLDER: {folder!r} holds images and TFRecords: give a folder that holds one of them"
        )
    return not images


def _check_engine(engine, address, out, server):
    """Raises ValueError if the options of the engine contradict others, and ImportError without Ray."""
    if address and not engine:
        raise ValueError("--address needs --engine ray")
    if not engine:
        return
    if server:
        raise ValueError("--engine ray runs the model itself: leave --server or --engine out")
    if not out.endswith(store.SUFFIX):
        raise ValueError(
            f"--engine ray writes a table: give an --out that ends in .lance, not {out!r}"
        )
    ray_cluster.import_ray()
    if address:
        ray_cluster.check_address(address)


def _update_by_ray(folder, out, model, modules, batch_size, address):
    """Brings a table up to date by a Ray cluster, and returns its Counts."""
    from keras_ssl.tables import ray_engine
    from keras_ssl.tables.identity import of_model

    load, identity = functools.partial(_encoder, modules=modules), of_model(model)
    engine = ray_engine.RayEngine(model, identity, load, batch_size, address)
    return ray_engine.update_by_ray(out, folder, identity, engine, progress=True)


def _encoder(model, modules):
    return common.load_model(model, modules)[1]


def _update(folder, clips_of, has_records, clip, out, client, model, modules, batch_size):
    """Brings a table up to date, and returns its Counts."""
    from keras_ssl.tables import encode
    from keras_ssl.tables.clips import update_clips
    from keras_ssl.tables.identity import Identity, of_model
    from keras_ssl.tables.records import update_records
    from keras_ssl.tables.update import update

    if client:
        identity, encoder = Identity(model), encode.ServedEncoder(client)
    else:
        identity = of_model(model)
        encoder = encode.LocalEncoder(common.load_model(model, modules)[1], batch_size)
    if has_records:
        return update_records(out, folder, identity, encoder, progress=True)
    if clips_of is None:
        return update(out, folder, identity, encoder, progress=True)
    identity = identity.with_clips(*clip)
    return update_clips(out, folder, clips_of(encoder.size), identity, encoder, progress=True)


def _extract_there(folder, clips_of, pool, out, client):
    """Computes the features by a server, writes them, and returns their shape."""
    from keras_ssl import serving

    if clips_of:
        clips = clips_of(client.input_size())
        return serving.extract_clips(client, clips, out, pool, progress=True)
    paths = kssl.data.folder.image_files(folder)
    return serving.extract(client, paths, out, progress=True)


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
