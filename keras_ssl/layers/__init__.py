"""Keras layers of the zoo's encoders, heads and decoders."""

from keras_ssl.layers.batch_normalization import BatchNormalization
from keras_ssl.layers.causal import causal_rows
from keras_ssl.layers.channelwise_dense import ChannelwiseDense
from keras_ssl.layers.decoder import Decoder, half_size_decoder
from keras_ssl.layers.lab import Lab
from keras_ssl.layers.memory_bank import MemoryBank
from keras_ssl.layers.patch_grid import PatchGrid
from keras_ssl.layers.projection import projection
from keras_ssl.layers.queue import Queue
from keras_ssl.layers.residual_projection import residual_projection
from keras_ssl.layers.sinkhorn import Sinkhorn
from keras_ssl.layers.sobel import Sobel
from keras_ssl.layers.spatial_embedding import spatial_embedding
from keras_ssl.layers.spectral_normalization import SpectralNormalization

__all__ = [
    "BatchNormalization",
    "ChannelwiseDense",
    "Decoder",
    "Lab",
    "MemoryBank",
    "PatchGrid",
    "Queue",
    "Sinkhorn",
    "Sobel",
    "SpectralNormalization",
    "causal_rows",
    "half_size_decoder",
    "projection",
    "residual_projection",
    "spatial_embedding",
]
