"""Features of stages, views and patches, and checks of an encoder."""

import warnings

import keras
import numpy as np
from keras import layers, ops

from keras_ssl.encoders.grid import grid_of
from keras_ssl.encoders.residual import STAGE
from keras_ssl.layers import strided
from keras_ssl.ops import images


def maps(encoder):
    """Builds a model that outputs the feature maps of all stages of an encoder, for decoders.

    Args:
        encoder: functional keras.Model whose layers `stage1`, `stage2`, ... output feature maps.

    Returns:
        keras.Model from the encoder's input to a dict `stage1`, `stage2`, ... of (B, h, w, c) tensors.

    Raises:
        ValueError: the encoder has no layer named `stage1`.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> maps(resnet((32, 32, 3), width=4, blocks=(1, 1))).output["stage2"].shape
        (None, 16, 16, 8)
    """
    outputs = {}
    names = {layer.name for layer in encoder.layers}
    while f"{STAGE}{len(outputs) + 1}" in names:
        name = f"{STAGE}{len(outputs) + 1}"
        outputs[name] = encoder.get_layer(name).output
    if not outputs:
        raise ValueError(
            f"encoder {encoder.name!r} names no stages: name its layers stage1, stage2, ... or wrap "
            "it with keras_ssl.encoders.from_keras"
        )
    return keras.Model(encoder.input, outputs)


def stages(encoder, dimensions=None):
    """Builds a model that outputs the pooled features of all stages of an encoder.

    Args:
        encoder: functional keras.Model whose layers `stage1`, `stage2`, ... output feature maps.
        dimensions: int, average-pools each map of c channels to s x s positions, s = sqrt(dimensions / c)
            rounded and at most the height and width of the map; by default to one position.

    Returns:
        keras.Model from the encoder's input to a dict `stage1`, ..., `features` of (B, c) tensors, or of
        (B, s * s * c) tensors, by row, column and channel, except for `features`.

    Raises:
        ValueError: the encoder has no layer named `stage1`, `dimensions` is below 1, or it is given for an
            encoder whose maps have no fixed size.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> list(stages(resnet((32, 32, 3), width=4, blocks=(1, 1))).output)
        ['stage1', 'stage2', 'features']
    """
    pool = layers.GlobalAveragePooling2D(dtype="float32")
    if dimensions is not None:
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")

        def pool(output):
            return _pooled_to(output, dimensions)

    outputs = {name: pool(output) for name, output in maps(encoder).output.items()}
    return keras.Model(encoder.input, {**outputs, "features": encoder.output})


def _pooled_to(output, dimensions):
    """Average-pools a (B, h, w, c) map to about `dimensions` numbers, returned as a (B, s * s * c) tensor."""
    height, width, channels = output.shape[1:]
    if None in (height, width):
        raise ValueError(
            f"dimensions needs maps of fixed size, got {output.shape}: create the encoder with the height "
            "and width of the images"
        )
    side = max(1, round((dimensions / channels) ** 0.5))
    # By matrix products, since the layer for this needs Keras 3.13.
    rows, columns = _averaging(min(side, height), height), _averaging(min(side, width), width)
    pooled = ops.einsum("bhwc,sh,tw->bstc", ops.cast(output, "float32"), rows, columns)
    return ops.reshape(pooled, (-1, len(rows) * len(columns) * channels))


def _averaging(number, size):
    """Returns the (number, size) float32 matrix of means over windows of nearly equal size."""
    matrix = np.zeros((number, size), np.float32)
    for i in range(number):
        window = slice(i * size // number, -(-(i + 1) * size // number))
        matrix[i, window] = 1 / (window.stop - window.start)
    return matrix


def each(encoder, x, training=False):
    """Computes features of several views of each image.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        x: (B, V, H, W, C) tensor: rotations, augmented views, frames.
        training: bool, as in Keras.

    Returns:
        (B, V, D) tensor.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> import tensorflow as tf
        >>> each(resnet((32, 32, 3), width=4), tf.zeros((2, 5, 32, 32, 3))).shape
        TensorShape([2, 5, 32])
    """
    return images.unfold(encoder(images.fold(x), training=training), x.shape[1])


def on_patches(encoder, patches, training=False):
    """Computes features of patches, which are smaller (or larger) than the encoder's input.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D) that `check_patches` accepts.
        patches: (B, V, h, w, C) tensor.
        training: bool, as in Keras.

    Returns:
        (B, V, D) tensor.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> import tensorflow as tf
        >>> on_patches(resnet((32, 32, 3), width=4), tf.zeros((2, 9, 8, 8, 3))).shape
        TensorShape([2, 9, 32])
    """
    # Not `encoder(...)`: Keras refuses tensors whose size differs from that of the encoder's input.
    features = encoder.call(images.fold(patches), training=training)
    return images.unfold(features, patches.shape[1])


def check_patches(encoder, height, width):
    """Checks that an encoder accepts patches whose size differs from that of its input.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        height, width: int, pixels of a patch.

    Raises:
        ValueError: the encoder does not output D features for such a patch, or was built by `patch_grid`.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> check_patches(resnet((32, 32, 3), width=4), 8, 8)
    """
    if grid_of(encoder) is not None:
        raise ValueError(
            f"encoder {encoder.name!r} cuts its input into patches itself: build one that sees the whole "
            "input, such as encoders.resnet"
        )
    try:
        output = encoder.call(keras.Input((height, width, encoder.input_shape[-1])))
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"encoder cannot take patches of {height}x{width} pixels ({reason}): use larger images or "
            "an encoder with global average pooling and fewer downsampling steps"
        ) from None
    if output.shape[1:] != encoder.output_shape[1:]:
        raise ValueError(
            f"encoder gives {output.shape[1:]} for patches of {height}x{width} pixels, but "
            f"{encoder.output_shape[1:]} for images: it must end with global average pooling"
        )


def check_encoder(encoder):
    """Checks that a model can be the encoder of a task.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).

    Raises:
        ValueError: it is not functional, or has other inputs or outputs.

    Warns:
        UserWarning: it has a layer whose gradients TensorFlow may compute wrongly on CPUs.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> check_encoder(resnet((32, 48, 3), width=4))
    """
    # A list of shapes if there are several inputs or outputs; None if it is not functional.
    shapes = [getattr(encoder, name, None) for name in ("input_shape", "output_shape")]
    if any(type(s) is not tuple or len(s) != n for s, n in zip(shapes, (4, 2), strict=True)):
        raise ValueError(
            "encoder must be a functional keras.Model from (B, H, W, C) to (B, D), got "
            f"{encoder!r} from {shapes[0]} to {shapes[1]}; keras_ssl.encoders.from_keras makes one from "
            "any functional Keras model"
        )
    strided.warn_of_miscomputed(encoder)


def check_image_shape(encoder):
    """Checks that an encoder takes RGB images of fixed size, and returns that size.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).

    Returns:
        (H, W): int, pixels.

    Raises:
        ValueError: the input is not one batch of images, H or W is not fixed, or C is not 3.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> check_image_shape(resnet((32, 48, 3), width=4))
        (32, 48)
    """
    shape = getattr(encoder, "input_shape", None)  # a list of shapes if there are several inputs
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:] or shape[3] != 3:
        shape = shape[1:] if isinstance(shape, tuple) else shape
        raise ValueError(f"encoder must take images (H, W, 3) of fixed size, got {shape}")
    return shape[1:3]


def warn_of_batch_normalization(encoder, part):
    """Warns that batch normalization leaks information between the parts of a batch that are predicted.

    Args:
        encoder: keras.Model.
        part: str, one input of the encoder, such as "patch".

    Warns:
        UserWarning: the encoder has batch normalization.

    Example:
        >>> from keras_ssl.encoders import resnet
        >>> warn_of_batch_normalization(resnet((8, 8, 3), 2, (1,), normalization="layer"), "patch")
    """
    for layer in encoder._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            warnings.warn(
                f"{layer.name!r} normalizes each {part} by the statistics of all others, which reveal those "
                "that are to be predicted: build the encoder with encoders.patch_grid, or with "
                'encoders.resnet(normalization="layer")',
                stacklevel=3,
            )
            return
