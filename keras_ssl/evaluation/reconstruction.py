"""How near are pictures that were given back to what they were?"""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.metrics import psnr
from keras_ssl.protocols import Reconstructs


def reconstruction(task, images, batch_size=100, verbose=0):
    """Judges a generation task on whole pictures, beside the answer that needs no network.

    Args:
        task: PretextModel with the methods `corrupt(image, seed)`, `reconstruct(x, y, y_pred)` and
            `baseline(x, y)`: Colorization, Inpainting, SuperResolution.
        images: tf.data.Dataset of dicts with `image` and `id`, not those it was trained on.
        batch_size: int, images at a time.
        verbose: 1 shows progress.

    Returns:
        dict of floats: `psnr` (dB) and `ssim` (at most 1), means over the pictures, and the same of the
        trivial answer, `trivial_psnr` and `trivial_ssim`.

    Raises:
        ValueError: `task` gives no picture back.

    Reference: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    IEEE TIP 2004 (SSIM).

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.SuperResolution(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,)))
        >>> found = reconstruction(task, kssl.data.digits("test"))
        >>> sorted(found)
        ['psnr', 'ssim', 'trivial_psnr', 'trivial_ssim']
    """
    if not isinstance(task, Reconstructs):
        raise ValueError(
            f"task must give pictures back, as Colorization, Inpainting and SuperResolution do; got {task!r}"
        )

    @tf.function(reduce_retracing=True)
    def scores(batch):
        ids = tf.cast(batch["id"], tf.int64)
        x, y = task.corrupt(batch["image"], tf.stack([tf.zeros_like(ids), ids], axis=1))
        picture = tf.cast(batch["image"], tf.float32)
        size = min(11, *picture.shape[1:3])  # of SSIM's window
        return [
            score
            for answer in (task.reconstruct(x, y, task(x, training=False)), task.baseline(x, y))
            for score in (
                psnr(picture / 127.5 - 1, answer / 127.5 - 1),
                tf.image.ssim(picture, answer, 255, size),
            )
        ]

    parts = []
    batches = images.batch(batch_size).prefetch(2)
    bar = keras.utils.Progbar(int(batches.cardinality()), verbose=verbose, unit_name="batch")
    for batch in batches:
        parts.append(np.array(scores(batch)))
        bar.add(1)
    names = ("psnr", "ssim", "trivial_psnr", "trivial_ssim")
    means = np.concatenate(parts, axis=1).mean(axis=1)
    return {name: float(mean) for name, mean in zip(names, means, strict=True)}
