"""Writes features for TensorBoard's embedding projector."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks.sample import Sample

THUMBNAIL_SIZE = 64  # pixels of the longer side
MAX_SPRITE_SIZE = 8192  # largest side in pixels that all browsers show


class Projector(keras.callbacks.Callback):
    """Writes the features of a sample of images for TensorBoard's embedding projector after each epoch.

    `tensorboard --logdir LOG_DIR` shows them as points in space, each drawn as its image and colored by its
    label if there is one. TensorBoard caches the features: restart it to see the features of a later epoch.

    Args:
        log_dir: directory of the logs, as in `keras.callbacks.TensorBoard`; `projector_config.pbtxt`,
            `features.tsv`, `metadata.tsv` and `sprite.png` go there.
        images: tf.data.Dataset of dicts with `image` and `id`; points are named by their `label`, if there
            is one, or by its name, if the dataset has `class_names`.
        number: int, images to show: evenly spaced ones, or the first ones of a dataset without random
            access. All images if there are fewer.

    Raises:
        ValueError: `number` is below 1; in `fit`, `images` is not such a dataset.

    Example:
        >>> projector = Projector("logs", images=[])                            # doctest: +SKIP
        >>> task.fit(dataset, callbacks=[projector])                            # doctest: +SKIP
    """

    def __init__(self, log_dir, images, number=500):
        super().__init__()
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number!r}")
        self.log_dir, self.images, self.number = log_dir, images, number

    def on_train_begin(self, logs=None):
        from google.protobuf import text_format
        from tensorboard.plugins.projector import ProjectorConfig

        self.sample = Sample(self.model, self.images, self.number)
        elements = {name: column.numpy() for name, column in self.sample.elements.items()}
        names = getattr(self.images, "class_names", None)
        sheet, size = sprite(elements["image"])
        tf.io.gfile.makedirs(str(self.log_dir))
        self._write("sprite.png", tf.io.encode_png(sheet).numpy())
        self._write("metadata.tsv", metadata(elements["id"], elements.get("label"), names))
        config = ProjectorConfig()
        embedding = config.embeddings.add(
            tensor_name="features", tensor_path="features.tsv", metadata_path="metadata.tsv"
        )
        embedding.sprite.image_path = "sprite.png"
        embedding.sprite.single_image_dim.extend(size)
        self.config = text_format.MessageToString(config)

    def on_epoch_end(self, epoch, logs=None):
        # Nine digits represent a float32 exactly.
        rows = ("\t".join(f"{value:.9g}" for value in row) for row in self.sample.features())
        self._write("features.tsv", "\n".join(rows) + "\n")
        # Last, since it refers to the other files.
        self._write("projector_config.pbtxt", self.config)

    def _write(self, name, content):
        # TensorBoard may read at any time. files.complete cannot write to a bucket, which log_dir may be.
        path = f"{self.log_dir}/{name}"
        with tf.io.gfile.GFile(f"{path}.new", "wb") as file:
            file.write(content)
        tf.io.gfile.rename(f"{path}.new", path, overwrite=True)


def metadata(ids, labels=None, names=None):
    """Formats one line per point: its id, or a header and label and id if there are labels."""
    if labels is None:
        return "".join(f"{id}\n" for id in ids)
    # A tab or a line break in a class name would end the column.
    known = [" ".join(name.split()) for name in names] if names else None
    lines = (f"{known[k] if known else k}\t{id}\n" for k, id in zip(labels, ids, strict=True))
    return "label\tid\n" + "".join(lines)


def sprite(images):
    """Arranges thumbnails of all images row by row in one square image.

    Args:
        images: (N, H, W, C) array in 0..255; only the first three channels are shown.

    Returns:
        ((height, width, C) uint8 array, (width, height) of a thumbnail in pixels).
    """
    number, height, width = images.shape[:3]
    columns = math.ceil(math.sqrt(number))
    longer = max(height, width)
    factor = min(1, THUMBNAIL_SIZE / longer, MAX_SPRITE_SIZE / columns / longer)
    size = [max(1, int(factor * side)) for side in (height, width)]
    thumbnails = images[..., :3]
    if size != [height, width]:
        thumbnails = tf.image.resize(thumbnails, size, antialias=True).numpy()
    thumbnails = np.clip(np.round(thumbnails), 0, 255).astype(np.uint8)
    thumbnails = np.pad(thumbnails, [(0, columns**2 - number), (0, 0), (0, 0), (0, 0)])
    grid = thumbnails.reshape(columns, columns, *thumbnails.shape[1:])
    sheet = grid.swapaxes(1, 2).reshape(columns * size[0], columns * size[1], -1)
    return sheet, (size[1], size[0])
