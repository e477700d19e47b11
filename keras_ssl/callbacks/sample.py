"""A fixed sample of a dataset, and its features during training."""

import numpy as np
import tensorflow as tf

from keras_ssl.data import subset
from keras_ssl.evaluation.extract import map_batches

BATCH_SIZE = 64  # larger batches of feature maps may not fit into memory during training


class Sample:
    """A fixed sample of the images of a dataset, whose features can be extracted at any time.

    With random access, the images are evenly spaced, since folders are sorted by class; otherwise they are
    the first ones.

    Args:
        task: PretextModel.
        images: tf.data.Dataset of dicts with `image` and `id`.
        number: int, images in the sample; all images if there are fewer.

    Raises:
        ValueError: `images` does not yield such dicts, or yields nothing.
    """

    def __init__(self, task, images, number):
        spec = getattr(images, "element_spec", f"a {type(images).__name__}")
        if not isinstance(spec, dict) or not {"image", "id"} <= set(spec):
            raise ValueError(
                f"images must yield dicts with `image` and `id`, as for the task's dataset(), got {spec}"
            )
        if hasattr(images, "columns"):
            length = int(images.cardinality())
            rows = np.arange(min(number, length)) * length // min(number, length)
            sample = subset(images, rows).ignore_errors()
        else:
            sample = images.take(number)
        kept = [name for name in ("image", "id", "label") if name in spec]
        sample = sample.map(lambda element: {name: element[name] for name in kept})
        self.elements = next(iter(sample.batch(number)), None)
        if self.elements is None:
            raise ValueError("images must hold at least one image, got none")
        pixels = self.elements["image"]
        signature = tf.TensorSpec((None, *pixels.shape[1:]), pixels.dtype)
        self._features = tf.function(task.features, input_signature=[signature])

    def features(self, mirrored=False):
        """Extracts the features of the images, or of their mirror images: (number, D) float32 array."""
        pixels = self.elements["image"]
        if mirrored:
            pixels = pixels[:, :, ::-1]
        batches = [pixels[i : i + BATCH_SIZE] for i in range(0, len(pixels), BATCH_SIZE)]
        return map_batches(self._features, batches)
