"""The features as a cloud of points, for TensorBoard."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.callbacks.collapse import Sample

SIDE = 64  # pixels of a thumbnail's longer side
SPRITE = 8192  # pixels of a sprite's side, beyond which browsers may not show it


class Projector(keras.callbacks.Callback):
    """Writes the features of some pictures for TensorBoard's embedding projector, after each epoch.

    `tensorboard --logdir LOG_DIR` then shows them as points in space, each as its picture, coloured by its
    label where it has one. TensorBoard keeps the features that it has read: start it anew for those of a
    later epoch.

    Args:
        log_dir: directory of the logs, as of `keras.callbacks.TensorBoard`; `projector_config.pbtxt`,
            `features.tsv`, `metadata.tsv` and `sprite.png` go there.
        images: tf.data.Dataset of dicts with `image` and `id`; points are named by `label` where there is
            one, and by the dataset's `class_names` where it has them.
        number: int, pictures to show: the first ones, or, where the dataset can be asked for pictures by
            their place, evenly spaced ones. All where there are fewer.

    Raises:
        ValueError: `number` below 1; in `fit`, `images` that are none.

    Example:
        >>> cloud_of_digits = Projector("logs", images=[])                      # doctest: +SKIP
        >>> task.fit(dataset, callbacks=[cloud_of_digits])                      # doctest: +SKIP
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
        # Nine digits give back each float32.
        rows = ("\t".join(f"{value:.9g}" for value in row) for row in self.sample.features())
        self._write("features.tsv", "\n".join(rows) + "\n")
        self._write("projector_config.pbtxt", self.config)  # it promises the other files

    def _write(self, name, content):
        """At once or not at all: TensorBoard may read at any time."""
        path = f"{self.log_dir}/{name}"
        with tf.io.gfile.GFile(f"{path}.new", "wb") as file:
            file.write(content)
        tf.io.gfile.rename(f"{path}.new", path, overwrite=True)


def metadata(ids, labels=None, names=None):
    """A line for each point: its label and its id where there are labels, after a line that says so."""
    if labels is None:
        return "".join(f"{id}\n" for id in ids)
    # A tab or a line break in the name of a folder would end the column.
    known = [" ".join(name.split()) for name in names] if names else None
    lines = (f"{known[k] if known else k}\t{id}\n" for k, id in zip(labels, ids, strict=True))
    return "label\tid\n" + "".join(lines)


def sprite(pictures):
    """All pictures in one: thumbnails, row by row, in a square.

    Args:
        pictures: (N, H, W, C) array in 0..255; of more than three channels the first three are shown.

    Returns:
        ((height, width, C) uint8 array, (width, height) of a thumbnail in pixels).
    """
    number, height, width = pictures.shape[:3]
    columns = math.ceil(math.sqrt(number))
    factor = min(1, SIDE / max(height, width), SPRITE / columns / max(height, width))
    size = [max(1, int(factor * side)) for side in (height, width)]
    thumbnails = pictures[..., :3]
    if size != [height, width]:
        thumbnails = tf.image.resize(thumbnails, size, antialias=True).numpy()
    thumbnails = np.clip(np.round(thumbnails), 0, 255).astype(np.uint8)
    thumbnails = np.pad(thumbnails, [(0, columns**2 - number), (0, 0), (0, 0), (0, 0)])
    grid = thumbnails.reshape(columns, columns, *thumbnails.shape[1:])
    sheet = grid.swapaxes(1, 2).reshape(columns * size[0], columns * size[1], -1)
    return sheet, (size[1], size[0])
