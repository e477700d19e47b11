"""Rotation prediction: predicts by which angle an image was rotated."""

import keras
import tensorflow as tf

from keras_ssl import encoders
from keras_ssl.arguments import check_fraction
from keras_ssl.ops import augment, images
from keras_ssl.pretext import PretextModel


@keras.saving.register_keras_serializable(package="keras_ssl")
class Rotation(PretextModel):
    """Predicts by which multiple of 90 degrees each image was rotated.

    To know which way is up, the network has to recognize the object and its parts. Rotations by multiples
    of 90 degrees are transpositions and reversals. They need no interpolation, whose artifacts would
    reveal the label (section 3 of the paper).

    Before the rotation each image is shifted and flipped at random, as in the authors' training code. The
    shift removes a shortcut: JPEG stores color at half the resolution, and upsampling rounds the left and
    right pixels, and the upper and lower pixels, of each 2x2 block differently. That reveals the rotation if
    the blocks of all images lie on the same grid.

    All rotations of an image are in the same batch, which worked better in the paper than one random
    rotation per image (section 4.1). A batch of B images thus has B x K inputs.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D); H = W unless all `angles` are
            multiples of 180.
        num_rotations: 4 for 0, 90, 180 and 270 degrees, 2 for 0 and 180 (the paper's table 2).
        angles: the rotations in degrees, instead of `num_rotations`; (90, 270) is the paper's other pair.
        shift: float in 0..0.5, the largest shift as a fraction of height and width.
        flip: bool, whether to mirror each image with probability 0.5.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, K, H, W, C), dtype of the image. y: (B, K) int32. Prediction: (B, K, K) float32 logits, with
        the angles on the last axis.

    Raises:
        ValueError: `num_rotations` is not 2 or 4; `angles` are not at least two distinct multiples of 90;
            there are quarter turns, but the encoder's input is not square; `shift` is not in 0..0.5.

    Reference: Gidaris, Singh & Komodakis, "Unsupervised Representation Learning by Predicting Image
    Rotations", ICLR 2018.

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=8))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    weight_decay = 5e-4  # as in the authors' code
    label_name = "rotated"

    def __init__(self, encoder, num_rotations=4, angles=None, shift=0.125, flip=True, **kwargs):
        super().__init__(encoder, **kwargs)
        if angles is None:
            if num_rotations not in (2, 4):
                raise ValueError(f"num_rotations must be 2 or 4, got {num_rotations!r}")
            angles = (0, 180) if num_rotations == 2 else (0, 90, 180, 270)
        angles = tuple(angles)
        if (
            len(angles) < 2
            or any(isinstance(a, str) or a % 90 for a in angles)
            or len({a % 360 for a in angles}) < len(angles)
        ):
            raise ValueError(f"angles must be two to four distinct multiples of 90, got {angles}")
        height, width = encoder.input_shape[1:3]
        if height != width and any(a % 180 for a in angles):
            raise ValueError(
                f"angles {angles} need square images, but the encoder takes {height}x{width}"
            )
        check_fraction("shift", shift, most=0.5)
        self.num_rotations, self.angles = len(angles), angles
        self.shift, self.flip = shift, flip
        self.head = keras.layers.Dense(len(angles), dtype="float32", name="head")

    def pretext(self, batch, seed):
        image = augment.random_shift(batch["image"], seed, self.shift, self.flip)
        x = tf.stack([images.rotate(image, a) for a in self.angles], axis=1)
        y = tf.tile(tf.range(len(self.angles))[None], [tf.shape(image)[0], 1])
        return x, y

    def call(self, x, training=False):
        return self.head(encoders.each(self.encoder, x, training))

    def label_text(self, label):
        return f"{self.angles[label]}\N{DEGREE SIGN}"

    def prediction(self, images):
        return {"rotation": self.head(self.encoder(images, training=False))}
