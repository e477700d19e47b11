"""Solvers on arrays: optimal transport and clustering."""

from keras_ssl.solvers import clustering, transport

__all__ = ["clustering", "transport"]
