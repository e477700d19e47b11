"""Encoders from any functional Keras model."""

import keras
from keras import layers

from keras_ssl.encoders.residual import STAGE, to_unit
from keras_ssl.layers import strided


def from_keras(model, stages=None, preprocessing=None):
    """Builds an encoder from a functional Keras model: adds preprocessing, pooling and stage names.

    The weights are copied; `model` is not changed. Strided 1x1 convolutions of few channels, whose
    gradients oneDNN miscomputes, are replaced by subsampling and a convolution without strides, which
    compute the same function.

    Args:
        model: functional keras.Model with one (B, H, W, C) input of fixed size, for example
            `keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))`.
            The features are its output, averaged over the image if it is a feature map.
        stages: names of the layers that end a stage, first to last. By default the last layer before
            each reduction of the resolution; pass the names if the model has parallel branches.
        preprocessing: keras layer that converts pixels in 0..255 to the input that `model` expects; by
            default a `keras.layers.Rescaling` to -1..1.

    Returns:
        keras.Model from (B, H, W, C) pixels in 0..255 to (B, D) features.

    Raises:
        ValueError: `model` is not functional, does not take one image of fixed size, has several outputs, or
            has no layer with one of the names in `stages`.

    Warns:
        UserWarning: such a convolution is transposed or in a nested model, where it is not replaced.

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
    if len(model.outputs) != 1:
        raise ValueError(
            f"model must have one output, got {model.output_names}: wrap "
            "keras.Model(model.input, <one of model.outputs>)"
        )
    # The same structure for all models, including Sequential models and models with a list of one input.
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
        if strided.is_miscomputed(layer) and not isinstance(layer, layers.Conv2DTranspose):
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
    pixels = (preprocessing or to_unit())(inputs)
    keras.models.clone_model(model, input_tensors=pixels, clone_function=cloned, call_function=call)
    for name, layer in clones.items():
        layer.set_weights(model.get_layer(name).get_weights())
    last = model.output_names[0]
    features = outputs[names.get(last, last)]
    if len(features.shape) == 4:
        features = layers.GlobalAveragePooling2D(name="features", dtype="float32")(features)
    encoder = keras.Model(inputs, features, name=model.name)
    strided.warn_of_miscomputed(encoder)
    return encoder


def _ends_of_stages(model):
    """Returns the names of the last layers before each reduction of the resolution, first to last."""
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
