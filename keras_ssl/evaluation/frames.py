"""Quality of predicted frames where something moves: PSNR and SSIM, versus predictions without a network."""

import tensorflow as tf

from keras_ssl.evaluation.extract import map_batches
from keras_ssl.metrics import psnr


def frame_prediction(task, batches, verbose=0):
    """Computes PSNR and SSIM of predicted frames in moving (or hidden) areas, versus the baselines.

    Where nothing moves, copying the last frame is right, so it would score well on average. Here only the
    pixels where the task's mask is 1 count, and clips without any such pixel are left out.

    Args:
        task: FramePrediction, or a task with its methods `reconstruct(x, y, y_pred)` and `baselines(x, y)`.
        batches: tf.data.Dataset of (x, y), from `task.dataset` of clips that it was not trained on.
        verbose: 1 shows progress, 0 does not.

    Returns:
        dict of floats: `psnr` (dB) and `ssim` (at most 1), averaged over clips; the same for each baseline,
        such as `copy_psnr` and `extrapolation_ssim`; and `moving`, the fraction of pixels that count. NaN if
        nothing moves in any clip.

    Raises:
        ValueError: `task` does not predict frames.

    Reference: Mathieu et al., ICLR 2016, section 4 (moving areas); Wang et al., "Image Quality Assessment:
    From Error Visibility to Structural Similarity", IEEE TIP 2004 (SSIM).

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.FramePrediction(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,)))
        >>> scores = frame_prediction(task, task.dataset(kssl.data.scenes(8, 32, frames=5), 8))
        >>> sorted(scores)
        ['copy_psnr', 'copy_ssim', 'extrapolation_psnr', 'extrapolation_ssim', 'moving', 'psnr', 'ssim']
    """
    if not hasattr(task, "baselines"):
        raise ValueError(f"task must predict frames, as FramePrediction does; got {task!r}")

    @tf.function(reduce_retracing=True)
    def scores(batch):
        x, y = batch
        truth, mask = 127.5 * (y[..., :3] + 1), y[..., 3:]
        results = {"": task.reconstruct(x, y, task(x, training=False))}
        results |= {f"{name}_": image for name, image in task.baselines(x, y).items()}
        found = {"moving": tf.reduce_mean(mask, axis=[1, 2, 3])}
        for prefix, image in results.items():
            found[f"{prefix}psnr"] = psnr(y, image / 127.5 - 1)
            found[f"{prefix}ssim"] = ssim(truth, image, mask)
        return found

    found = map_batches(scores, batches, verbose=verbose)
    moving = found["moving"]
    means = {}
    for name, values in found.items():
        known = (moving > 0) & (values == values)  # SSIM is NaN where only the border moves
        means[name] = float(values[known].mean()) if known.any() else float("nan")
    means["moving"] = float(moving.mean())
    return means


def ssim(image, other, mask):
    """Computes the mean structural similarity of each image over the windows whose center is in a mask.

    Args:
        image, other: (B, H, W, C) float32 tensors in 0..255.
        mask: (B, H, W, 1) float32 tensor of zeros and ones.

    Returns:
        (B,) float32 tensor, NaN if there is no such window; windows do not reach beyond the border.

    Example:
        >>> ssim(tf.zeros((1, 16, 16, 3)), tf.zeros((1, 16, 16, 3)), tf.ones((1, 16, 16, 1))).numpy().tolist()
        [1.0]
    """
    size = min(11, *image.shape[1:3])
    similarity = tf.image.ssim(image, other, 255, size, return_index_map=True)
    start, (height, width) = (size - 1) // 2, similarity.shape[1:3]
    counts = mask[:, start : start + height, start : start + width, 0]
    return tf.reduce_sum(counts * similarity, axis=[1, 2]) / tf.reduce_sum(counts, axis=[1, 2])
