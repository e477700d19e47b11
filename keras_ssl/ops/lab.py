"""CIE Lab: conversion from and to sRGB, and the bins of a and b for colorization."""

import functools

import numpy as np
import tensorflow as tf

# sRGB (IEC 61966-2-1) to XYZ under illuminant D65: the rows are X, Y, Z, divided by the white point.
TO_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
) / [[0.95047], [1.0], [1.08883]]
KNEE = 6 / 29  # below this, Lab replaces the cube root by a straight line
BIN = 10.0  # width of a bin in a and in b, as in Zhang et al.


def rgb_to_lab(image):
    """Converts RGB to CIE Lab: lightness L, a (green to red) and b (blue to yellow).

    Args:
        image: (..., 3) tensor, RGB in 0..255, uint8 or float.

    Returns:
        (..., 3) float32 tensor: L in 0..100, a and b in about -110..110, 0 for gray.

    Reference: CIE 15, "Colorimetry"; IEC 61966-2-1 (sRGB).

    Example:
        >>> rgb_to_lab(tf.constant([255.0, 255.0, 255.0])).numpy().round(1)[0]
        np.float32(100.0)
    """
    rgb = tf.cast(image, tf.float32) / 255
    linear = tf.where(rgb > 0.04045, ((tf.maximum(rgb, 0.04) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    xyz = tf.tensordot(linear, tf.constant(TO_XYZ.T, tf.float32), 1)
    root = tf.maximum(xyz, KNEE**3) ** (1 / 3)
    f = tf.where(xyz > KNEE**3, root, xyz / (3 * KNEE**2) + 4 / 29)
    x, y, z = tf.unstack(f, axis=-1)
    return tf.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab):
    """Converts CIE Lab to RGB; colors outside the sRGB gamut are clipped.

    Args:
        lab: (..., 3) float tensor.

    Returns:
        (..., 3) float32 tensor, RGB in 0..255.

    Example:
        >>> lab_to_rgb(tf.constant([100.0, 0.0, 0.0])).numpy().round().tolist()
        [255.0, 255.0, 255.0]
    """
    lightness, a, b = tf.unstack(tf.cast(lab, tf.float32), axis=-1)
    y = (lightness + 16) / 116
    f = tf.stack([y + a / 500, y, y - b / 200], axis=-1)
    xyz = tf.where(f > KNEE, f**3, 3 * KNEE**2 * (f - 4 / 29))
    linear = tf.tensordot(xyz, tf.constant(np.linalg.inv(TO_XYZ).T, tf.float32), 1)
    linear = tf.clip_by_value(linear, 0, 1)
    high = 1.055 * tf.maximum(linear, 0.003) ** (1 / 2.4) - 0.055
    return 255 * tf.where(linear > 0.0031308, high, 12.92 * linear)


def lightness_and_colors(image):
    """Draws the content of the channels L and ab: the image in gray, and its colors at one lightness.

    Args:
        image: (..., 3) tensor, RGB in 0..255.

    Returns:
        (gray, colors): (..., 3) float32 arrays, RGB in 0..255.

    Example:
        >>> gray, colors = lightness_and_colors(tf.constant([255.0, 255.0, 255.0]))
        >>> gray.round().tolist(), colors.round().tolist()
        ([255.0, 255.0, 255.0], [145.0, 145.0, 145.0])
    """
    lightness, a, b = tf.unstack(rgb_to_lab(image), axis=-1)
    none, same = tf.zeros_like(a), tf.fill(tf.shape(a), 60.0)  # at which most colors can be shown
    parts = (lightness, none, none), (same, a, b)
    return tuple(lab_to_rgb(tf.stack(channels, axis=-1)).numpy() for channels in parts)


@functools.cache
def ab_bins():
    """Returns the centers of all bins of a and b, of width 10, that are within the sRGB gamut.

    There are 262. The 313 bins that Zhang et al. published include some that contain no sRGB color.

    Returns:
        (262, 2) float32 array, sorted by a and then b.

    Reference: Zhang, Isola & Efros, "Colorful Image Colorization", ECCV 2016, section 2.1.

    Example:
        >>> ab_bins().shape
        (262, 2)
    """
    levels = np.linspace(0, 255, 128, dtype=np.float32)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    with tf.init_scope():  # eager even if a network is built inside a graph
        ab = np.concatenate([rgb_to_lab(part)[..., 1:].numpy().reshape(-1, 2) for part in cube])
    return (BIN * np.unique(np.round(ab / BIN).astype(int), axis=0)).astype(np.float32)


def distances(ab):
    """Computes the squared distances of colors to the centers of all bins.

    Args:
        ab: (..., 2) float tensor.

    Returns:
        (..., 262) float32 tensor.

    Example:
        >>> int(tf.argmin(distances(tf.constant([0.0, 0.0])))) == ab_bins().tolist().index([0, 0])
        True
    """
    bins = tf.constant(ab_bins())
    product = tf.tensordot(ab, tf.transpose(bins), 1)
    return tf.reduce_sum(ab**2, -1, keepdims=True) - 2 * product + tf.reduce_sum(bins**2, -1)
