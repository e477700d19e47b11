"""A ray caster that renders random scenes with exact geometry, as training data."""

from keras_ssl.data.renderer.reader import scenes

__all__ = ["scenes"]
