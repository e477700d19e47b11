"""Solvers on arrays, also those spread over workers: optimal transport and clustering."""

from keras_ssl.solvers import clustering, shares, transport

__all__ = ["clustering", "shares", "transport"]
