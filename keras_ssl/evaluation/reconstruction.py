"""Quality of reconstructed images: PSNR and SSIM."""

import tensorflow as tf

from keras_ssl.evaluation.extract import map_batches
from keras_ssl.metrics import psnr
from keras_ssl.protocols import Reconstructs


def reconstruction(task, images, batch_size=100, verbose=0):
    """Computes PSNR and SSIM of the images that a generation task reconstructs, versus a baseline.

    Args:
        task: PretextModel with the methods `corrupt(image, seed)`, `reconstruct(x, y, y_pred)` and
            `baseline(x, y)`: Colorization, Inpainting, SuperResolution.
        images: tf.data.Dataset of dicts with `image` and `id` that the task was not trained on.
        batch_size: int, images per batch.
        verbose: 1 shows progress, 0 does not.

    Returns:
        dict of floats: `psnr` (dB) and `ssim` (at most 1), averaged over the images, and `baseline_psnr` and
        `baseline_ssim` for the baseline, which needs no network.

    Raises:
        ValueError: `task` does not reconstruct images.

    Reference: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity",
    IEEE TIP 2004 (SSIM).

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.SuperResolution(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,)))
        >>> scores = reconstruction(task, kssl.data.digits("test"))
        >>> sorted(scores)
        ['baseline_psnr', 'baseline_ssim', 'psnr', 'ssim']
    """
    if not isinstance(task, Reconstructs):
        raise ValueError(
            "task must reconstruct images, as Colorization, Inpainting and SuperResolution do; got "
            f"{task!r}"
        )

    @tf.function(reduce_retracing=True)
    def scores(batch):
        ids = tf.cast(batch["id"], tf.int64)
        x, y = task.corrupt(batch["image"], tf.stack([tf.zeros_like(ids), ids], axis=1))
        image = tf.cast(batch["image"], tf.float32)
        window = min(11, *image.shape[1:3])  # of SSIM
        found = {}
        for prefix, result in (
            ("", task.reconstruct(x, y, task(x, training=False))),
            ("baseline_", task.baseline(x, y)),
        ):
            found[f"{prefix}psnr"] = psnr(image / 127.5 - 1, result / 127.5 - 1)
            found[f"{prefix}ssim"] = tf.image.ssim(image, result, 255, window)
        return found

    found = map_batches(scores, images.batch(batch_size).prefetch(2), verbose=verbose)
    return {name: float(values.mean()) for name, values in found.items()}
