"""Optimal transport and clustering of arrays, whose rows may be spread over workers."""

from keras_ssl.solvers import clustering, shares, transport

__all__ = ["clustering", "shares", "transport"]
