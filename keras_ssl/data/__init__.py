"""Readers: pictures to a tf.data.Dataset of dicts with `image`, `id` and, where known, `label`.

`image` is (H, W, 3) in 0..255, `id` an int64 that names the picture for good, `label` an int64 that
no pretext task looks at: it is for evaluation only. Every dataset has a known length, and all but
`from_tfds`'s are `addressable`: any picture can be asked for by its place. Readers of files also set the
attribute `class_names` (list or None); `from_folder` and `from_pages` set `paths` (list of str).
"""

from keras_ssl.data.arrays import cifar10, digits, from_array, subset, to_arrays
from keras_ssl.data.folder import from_folder
from keras_ssl.data.pages import from_pages, root_sift
from keras_ssl.data.tfds import from_tfds
from keras_ssl.data.tfrecord import from_tfrecord, to_tfrecord

__all__ = [
    "cifar10", "digits", "from_array", "from_folder", "from_pages", "from_tfds", "from_tfrecord",
    "root_sift", "subset", "to_arrays", "to_tfrecord",
]  # fmt: skip
