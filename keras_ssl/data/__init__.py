"""Readers: pictures to a tf.data.Dataset of dicts with `image`, `id` and, where known, `label`.

`image` is (H, W, 3) in 0..255, `id` an int64 that names the picture for good, `label` an int64 that
no pretext task looks at: it is for evaluation only. Every dataset has a known length. Readers of
files also set the attributes `paths` (list, indexed by id) and `class_names` (list or None).
"""

from keras_ssl.data.arrays import cifar10, digits, from_array, to_arrays
from keras_ssl.data.folder import from_folder
from keras_ssl.data.pages import from_pages, root_sift

__all__ = ["cifar10", "digits", "from_array", "from_folder", "from_pages", "root_sift", "to_arrays"]
