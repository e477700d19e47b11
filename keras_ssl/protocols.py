"""Optional methods of a task, beyond those of `PretextModel`; test for them by `isinstance(task, ...)`.

They are not in `pretext.py`, since callbacks import them and `pretext.py` imports callbacks.
"""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Relabels(Protocol):
    """A task whose labels are recomputed from the features of all images, by `callbacks.Relabel`.

    It also has a weight `labels`, indexed by image id, -1 where there is no label yet.
    """

    def relabel(self, features):
        """Recomputes the labels from (N, D) features in the order of the ids.

        Args:
            features: `solvers.shares.Share` with the features of this worker's images, or the array of all
                features. All workers call this at the same time, and assign the labels of all images.
        """


@runtime_checkable
class LeavesOut(Protocol):
    """A task that gives no label to some images, so that `keras-ssl pretrain` leaves them out."""

    def labeled(self, images):
        """Selects the images that have a label, once `relabel` has run."""


@runtime_checkable
class Describes(Protocol):
    """A task that clusters its own descriptors instead of the encoder's features."""

    def descriptors(self, batch):
        """Computes (B, D) descriptors of a batch, a dict of arrays."""


@runtime_checkable
class Views(Protocol):
    """A task whose labels are recomputed from augmented images instead of the images themselves.

    It also has a weight `relabeled` that counts the relabelings.
    """

    def view(self, batch):
        """Computes (B, H, W, C) views of a batch, a dict of tensors with `image` and `id`.

        Their random numbers follow from the task's state and the ids, so that a resumed run and any number of
        workers compute the same labels.
        """


@runtime_checkable
class Reconstructs(Protocol):
    """A task that reconstructs images, evaluated by `evaluation.reconstruction`."""

    def corrupt(self, image, seed):
        """Computes (x, y) from (B, H, W, C) images without augmentation."""

    def reconstruct(self, x, y, y_pred):
        """Returns the reconstructed images, (B, H, W, C) float32 in 0..255."""

    def baseline(self, x, y):
        """Returns the reconstruction that needs no network, (B, H, W, C) float32 in 0..255."""
