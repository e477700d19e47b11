"""What the features of a table have in common: the model that computed them, and the pooling of clips."""

import json
from pathlib import Path
from typing import NamedTuple

from keras_ssl import files, zoo


class Identity(NamedTuple):
    """Model and pooling of a table; features of two identities must not be compared."""

    model: str  # name of the export's folder, of the .keras file, or on the server
    version: int | None = None  # None for a .keras file
    sha256: str | None = None  # of architecture and weights; None if they are on a server
    frames: int | None = None  # of a clip; None for images
    stride: int | None = None
    pool: str | None = None  # of the frames of a clip: "mean", "concat", or None for one frame

    @property
    def label(self):
        """The model's name and version, for people."""
        return self.model if self.version is None else f"{self.model} version {self.version}"

    def difference(self, other):
        """Returns why the features of two identities differ, as a clause, or None if they do not differ."""
        if self.sha256 and other.sha256:
            same = self.sha256 == other.sha256
        else:  # only a server knows one of them
            same = (self.model, self.version) == (other.model, other.version)
        if not same:
            digests = "" if self.label != other.label else " with other weights"
            return f"of the model {self.label}, not of {other.label}{digests}"
        if self[3:] != other[3:]:
            return f"of {self._unit()}, not of {other._unit()}"
        return None

    def _unit(self):
        if self.frames is None:
            return "images"
        pooled = f", pooled by {self.pool}" if self.pool else ""
        return f"clips of {self.frames} frames with stride {self.stride}{pooled}"

    def with_clips(self, frames, stride, pool):
        """Returns the identity of features of clips by the same model."""
        return self._replace(frames=frames, stride=stride, pool=pool if frames > 1 else None)

    def to_json(self):
        """Returns a str for the metadata of a table."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text):
        """Parses the result of `to_json`; raises ValueError or TypeError for anything else."""
        return cls(**json.loads(text))


def of_model(path):
    """Returns the identity of a model in a file or folder, without loading it.

    Args:
        path: a .keras file, the directory of an export, or the directory of one of its versions.

    Returns:
        Identity.

    Raises:
        ValueError: `path` is neither.
    """
    path = Path(path)
    if path.is_file():
        return Identity(path.name, None, files.sha256(path))
    if found := zoo.versions(path):
        path = found[max(found)]
    parts = sorted(path.glob("variables/*"))
    if not parts or not path.name.isdecimal():
        raise ValueError(
            f"there is no export in {str(path)!r}: give a folder that kssl.export wrote"
        )
    # Not of the graph, since the same weights exported again are the same model.
    parts += sorted(path.glob("assets.extra/encoder.json"))
    return Identity(path.resolve().parent.name, int(path.name), files.sha256(*parts))
