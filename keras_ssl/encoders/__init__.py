"""Encoders: functional Keras models from raw pixels (0..255) to feature vectors, with named stages."""

from keras_ssl.encoders.calibration import calibrate
from keras_ssl.encoders.grid import grid_of, patch_grid, patch_part
from keras_ssl.encoders.halves import check_halves, color_halves
from keras_ssl.encoders.local import local_resnet
from keras_ssl.encoders.outputs import (
    check_encoder,
    check_image_shape,
    check_patches,
    each,
    maps,
    on_patches,
    stages,
    warn_of_batch_normalization,
)
from keras_ssl.encoders.residual import STAGE, resnet
from keras_ssl.encoders.wrapped import from_keras

__all__ = [
    "STAGE",
    "calibrate",
    "check_encoder",
    "check_halves",
    "check_image_shape",
    "check_patches",
    "color_halves",
    "each",
    "from_keras",
    "grid_of",
    "local_resnet",
    "maps",
    "on_patches",
    "patch_grid",
    "patch_part",
    "resnet",
    "stages",
    "warn_of_batch_normalization",
]
