"""Readers: from files or arrays to a tf.data.Dataset of dicts.

Every row has `image` (H, W, 3) in 0..255 and `id`, an int64 that always names the same image; `label`,
an int64, if it is known. Labels are for evaluation only, except for tasks that name `label` in `needs`.
Further columns, such as `frames`, `depth` or `motion`, are passed on as they are; `from_videos` and
`from_rgbd` read them from files.

Every dataset has a known length, and all except those of `from_tfds` have random access: any row can be
loaded by its index. Readers of files also set the attribute `class_names` (list or None); `from_folder`,
`from_pages`, `from_rgbd`, `from_stereo` and `from_videos` set `paths` (list of str).
"""

from keras_ssl.data.arrays import cifar10, digits, from_array, to_arrays
from keras_ssl.data.columns import random_access, subset
from keras_ssl.data.flow import with_flow
from keras_ssl.data.folder import from_folder
from keras_ssl.data.motion_masks import with_motion_masks
from keras_ssl.data.moving import moving_digits
from keras_ssl.data.pages import from_pages, root_sift
from keras_ssl.data.paired import paired
from keras_ssl.data.relative_depth import with_relative_depth
from keras_ssl.data.renderer import scenes
from keras_ssl.data.rgbd import from_rgbd
from keras_ssl.data.stereo import from_stereo
from keras_ssl.data.tfds import from_tfds
from keras_ssl.data.tfrecord import from_tfrecord, to_tfrecord
from keras_ssl.data.videos import from_videos

__all__ = [
    "cifar10", "digits", "from_array", "from_folder", "from_pages", "from_rgbd", "from_stereo",
    "from_tfds", "from_tfrecord", "from_videos", "moving_digits", "paired", "random_access", "root_sift",
    "scenes", "subset", "to_arrays", "to_tfrecord", "with_flow", "with_motion_masks",
    "with_relative_depth",
]  # fmt: skip
