"""Statistics of batch normalization for whole images."""

import keras
import numpy as np
import tensorflow as tf


def calibrate(encoder, images, batch_size=256):
    """Recomputes the moving statistics of batch normalization from a dataset.

    An encoder that was trained on tiles, patches or grayscale images has the statistics of these inputs,
    which differ from those of whole images. Here each layer gets the exact mean and (biased) variance of its
    inputs over all images and positions. This is done from the first layer to the last, so that the layers
    before a layer already use their new statistics. So the result does not depend on the order of the images
    or on `batch_size`, except for rounding. The images are read once for each layer.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D); it is not changed.
        images: tf.data.Dataset of dicts with `image`, not from the test set; a few thousand are enough.
        batch_size: int, images per batch.

    Returns:
        keras.Model like `encoder`, with the same weights except for the moving means and variances.

    Raises:
        ValueError: `images` is empty, or a layer of batch normalization is inside a nested model or used
            twice.

    Reference: Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3, which averages statistics of
    batches instead.

    Example:
        >>> from keras_ssl import data, encoders
        >>> encoder = encoders.resnet((32, 32, 3), width=2, blocks=(1,))
        >>> calibrated = calibrate(encoder, data.digits("test"))
        >>> float(encoder.layers[3].moving_mean[0]), float(calibrated.layers[3].moving_mean[0]) != 0
        (0.0, True)
    """
    calibrated = keras.models.clone_model(encoder)
    calibrated.set_weights(encoder.get_weights())
    normalizations = [
        layer
        for layer in calibrated._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in normalizations:
        if layer not in calibrated.layers or len(layer._inbound_nodes) != 1:
            raise ValueError(
                f"encoder {encoder.name!r} must contain its layer {layer.name!r} directly and call it once, "
                "got one in a nested model or called twice: build it as one functional model"
            )
    batches = images.batch(batch_size).prefetch(2)
    # The order of `layers` is topological: the layers before one are already calibrated.
    for layer in [layer for layer in calibrated.layers if layer in normalizations]:
        mean, variance = _moments(keras.Model(calibrated.input, layer.input), layer.axis, batches)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance)
    return calibrated


def _moments(model, axis, batches):
    """Returns the mean and variance of each channel of a model's output over all batches, in float64."""

    @tf.function(input_signature=[batches.element_spec["image"]])
    def sums(image):
        x = tf.cast(model(image, training=False), tf.float64)
        others = [i for i in range(x.shape.rank) if i != axis % x.shape.rank]
        count = tf.size(x) // x.shape[axis]
        mean = tf.reduce_mean(x, others)
        shape = [x.shape[axis] if i not in others else 1 for i in range(x.shape.rank)]
        squares = tf.reduce_sum(tf.math.squared_difference(x, tf.reshape(mean, shape)), others)
        return tf.cast(count, tf.float64), mean, squares

    count, mean, squares = 0.0, 0.0, 0.0
    for batch in batches:
        # As in Chan, Golub & LeVeque, sums of squares around the means of the parts, which stay accurate.
        n, part_mean, part_squares = (np.asarray(value) for value in sums(batch["image"]))
        step, total = part_mean - mean, count + n
        squares = squares + part_squares + step**2 * count * n / total
        mean, count = mean + step * n / total, total
    if not count:
        raise ValueError("images must have at least one image, got an empty dataset")
    return mean, squares / count
