"""Encoders: functional Keras models from raw pixels (0..255) to feature vectors, with named stages."""

import keras
from keras import layers

from keras_ssl.layers import BatchNormalization, strided
from keras_ssl.ops import images

STAGE = "stage"


def resnet(
    input_shape,
    width=64,
    blocks=(2, 2, 2, 2),
    stem="small",
    synchronized=False,
    preprocessing=None,
):
    """Builds a residual network of basic blocks, by default ResNet-18.

    Args:
        input_shape: (H, W, C) of the images, e.g. (32, 32, 3); H and W may be None.
        width: channels of the first stage; each later stage has twice as many as the previous one.
        blocks: residual blocks per stage; every stage but the first halves the resolution.
        stem: "small" (one 3x3 convolution, for images up to about 96 pixels) or "imagenet"
            (7x7 convolution with stride 2 and a 3x3 max pooling with stride 2).
        synchronized: bool, synchronize batch normalization over all replicas.
        preprocessing: keras layer that converts pixels in 0..255 to the input of the first convolution,
            for example `keras_ssl.layers.Sobel()`; by default a rescaling to -1..1.

    Returns:
        keras.Model from (B, H, W, C) pixels in 0..255, uint8 or float, to (B, D) features with
        D = width * 2 ** (len(blocks) - 1), float32 even in mixed precision. The layers `stage1`,
        `stage2`, ... output the (B, h, w, c) feature maps at the end of each stage.

    Raises:
        ValueError: `input_shape`, `width`, `blocks` or `stem` is not of the form above.

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.1.

    Example:
        >>> resnet((32, 32, 3), width=16).output_shape
        (None, 128)
    """
    if len(input_shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}")
    if not (isinstance(width, int) and width > 0):
        raise ValueError(f"width must be a positive integer, got {width!r}")
    if not blocks or not all(isinstance(n, int) and n > 0 for n in blocks):
        raise ValueError(f"blocks must be positive integers, one per stage, got {blocks!r}")

    def convolution(x, filters, size, strides=1):
        x = layers.Conv2D(
            filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal"
        )(x)
        return BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized)(x)

    inputs = keras.Input(input_shape, name="images")
    x = (preprocessing or _to_unit())(inputs)
    if stem == "small":
        x = layers.ReLU()(convolution(x, width, 3))
    elif stem == "imagenet":
        x = layers.ReLU()(convolution(x, width, 7, strides=2))
        x = layers.MaxPooling2D(3, 2, "same")(x)
    else:
        raise ValueError(f'stem must be "small" or "imagenet", got {stem!r}')

    for stage, number in enumerate(blocks):
        filters = width * 2**stage
        for block in range(number):
            strides = 2 if stage > 0 and block == 0 else 1
            shortcut = x
            if strides > 1:
                # A strided convolution, as subsampling and convolution: see `layers/strided.py`.
                shortcut = convolution(layers.MaxPooling2D(1, strides)(x), filters, 1)
            x = layers.ReLU()(convolution(x, filters, 3, strides))
            x = layers.Add()([convolution(x, filters, 3), shortcut])
            x = layers.ReLU(name=f"{STAGE}{stage + 1}" if block == number - 1 else None)(x)

    features = layers.GlobalAveragePooling2D(name="features", dtype="float32")(x)
    return keras.Model(inputs, features, name="resnet")


def from_keras(model, stages=None, preprocessing=None):
    """Makes an encoder from a functional Keras model: adds preprocessing, pooling and names of stages.

    The weights are copied; `model` is not changed. Strided 1x1 convolutions of few channels, whose
    gradients oneDNN miscomputes, are replaced by subsampling and a convolution without strides, which
    compute the same function.

    Args:
        model: functional keras.Model with one (B, H, W, C) input of fixed size, for example
            `keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))`.
            The features are its output, averaged over the image if it is a feature map.
        stages: names of the layers that end a stage, first to last. By default the last layer before
            each drop of the resolution; pass the names if the model has parallel branches.
        preprocessing: keras layer that converts pixels in 0..255 to the input that `model` expects; by
            default a `keras.layers.Rescaling` to -1..1.

    Returns:
        keras.Model from (B, H, W, C) pixels in 0..255 to (B, D) features.

    Raises:
        ValueError: `model` is not functional, does not take one image of fixed size, or has no layer
            with one of the names in `stages`.

    Example:
        >>> backbone = keras.applications.MobileNetV2((32, 32, 3), weights=None, include_top=False)
        >>> from_keras(backbone).output_shape
        (None, 1280)
    """
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise ValueError(
            "model must be a functional keras.Model with one input of fixed size "
            f"(batch, height, width, channels), got {model!r} with input shape {shape!r}"
        )
    # One structure for all models: Sequential models and those with a list of one input included.
    model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    stages = _ends_of_stages(model) if stages is None else list(stages)
    unknown = set(stages) - {layer.name for layer in model.layers}
    if unknown or not stages:
        raise ValueError(f"stages must name layers of {model.name!r}, got {sorted(unknown)}")
    names = {name: f"{STAGE}{number}" for number, name in enumerate(stages, start=1)}

    subsampled, clones, outputs = {}, {}, {}

    def cloned(layer):
        config = layer.get_config()
        config["name"] = names.get(layer.name, layer.name)
        if strided.is_miscomputed(layer):
            subsampled[config["name"]] = strided.subsampling(layer, config["name"])
            config["strides"] = 1
        clones[layer.name] = layer.__class__.from_config(config)
        return clones[layer.name]

    def call(layer, *args, **kwargs):
        if layer.name in subsampled:
            args, kwargs = [subsampled[layer.name](*args, **kwargs)], {}
        outputs[layer.name] = layer(*args, **kwargs)
        return outputs[layer.name]

    inputs = keras.Input(shape[1:], name="images")
    pixels = (preprocessing or _to_unit())(inputs)
    keras.models.clone_model(model, input_tensors=pixels, clone_function=cloned, call_function=call)
    for name, layer in clones.items():
        layer.set_weights(model.get_layer(name).get_weights())
    strided.warn_of_inner_layers(model)
    last = model.output_names[0]
    features = outputs[names.get(last, last)]
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D(name="features", dtype="float32")(features)
    return keras.Model(inputs, features, name=model.name)


def _to_unit():
    """Rescales pixels to -1..1, in float32 even in mixed precision: bfloat16 has too few bits for it."""
    return layers.Rescaling(1 / 127.5, offset=-1, dtype="float32")


def _ends_of_stages(model):
    """Returns the names of the last layers before each drop of the resolution, first to last."""
    maps = [
        (layer, layer.output.shape[1])
        for layer in model.layers
        if len(getattr(layer.output, "shape", ())) == 4
        and not isinstance(layer, layers.ZeroPadding2D)
    ]
    ends, current = [], None
    for i, (layer, height) in enumerate(maps):
        if current is None and not layer.trainable_weights:
            continue  # preprocessing
        if height < max(later for _, later in maps[i:]):
            continue  # a branch through a smaller map, such as squeeze and excitation
        if current is None or height < current:
            ends.append(layer.name)
            current = height
        ends[-1] = layer.name
    return ends


def maps(encoder):
    """Builds a model that outputs the feature maps of all stages of an encoder, for decoders.

    Args:
        encoder: functional keras.Model whose layers `stage1`, `stage2`, ... output feature maps.

    Returns:
        keras.Model from the encoder's input to a dict `stage1`, `stage2`, ... of (B, h, w, c) tensors.

    Raises:
        ValueError: the encoder has no layer named `stage1`.

    Example:
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


def stages(encoder):
    """Builds a model that outputs the pooled features of all stages of an encoder.

    Args:
        encoder: functional keras.Model whose layers `stage1`, `stage2`, ... output feature maps.

    Returns:
        keras.Model from the encoder's input to a dict `stage1`, ..., `features` of (B, c) tensors.

    Raises:
        ValueError: the encoder has no layer named `stage1`.

    Example:
        >>> list(stages(resnet((32, 32, 3), width=4, blocks=(1, 1))).output)
        ['stage1', 'stage2', 'features']
    """
    pool = layers.GlobalAveragePooling2D(dtype="float32")
    outputs = {name: pool(output) for name, output in maps(encoder).output.items()}
    return keras.Model(encoder.input, {**outputs, "features": encoder.output})


def each(encoder, x, training=False):
    """Computes features of several views of each image.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        x: (B, V, H, W, C) tensor: rotations, augmented views, frames.
        training: bool, as in Keras.

    Returns:
        (B, V, D) tensor.

    Example:
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
        >>> import tensorflow as tf
        >>> on_patches(resnet((32, 32, 3), width=4), tf.zeros((2, 9, 8, 8, 3))).shape
        TensorShape([2, 9, 32])
    """
    # Not `encoder(...)`: Keras refuses tensors whose size differs from that of the encoder's input.
    features = encoder.call(images.fold(patches), training=training)
    return images.unfold(features, patches.shape[1])


def check_patches(encoder, height, width):
    """Checks that an encoder can take patches of another size than its input.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).
        height, width: int, pixels of a patch.

    Raises:
        ValueError: the encoder does not output D features for such a patch.

    Example:
        >>> check_patches(resnet((32, 32, 3), width=4), 8, 8)
    """
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


def check_image_shape(encoder):
    """Checks that an encoder takes RGB images of fixed size, and returns that size.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D).

    Returns:
        (H, W): int, pixels.

    Raises:
        ValueError: H or W is not fixed, or C is not 3.

    Example:
        >>> check_image_shape(resnet((32, 48, 3), width=4))
        (32, 48)
    """
    shape = encoder.input_shape[1:]
    if None in shape or shape[-1] != 3:
        raise ValueError(f"encoder must take images (H, W, 3) of fixed size, got {shape}")
    return shape[:2]
