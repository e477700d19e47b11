"""Loads versions of models, tries again after errors of the file system, and remembers failures."""

import collections
import errno
import logging
import math
import os
import stat
import threading
import time
import typing
from pathlib import Path

import grpc

from keras_ssl.serving.server.errors import first_line
from keras_ssl.serving.server.servable import Servable
from keras_ssl.serving.server.states import State
from keras_ssl.zoo import scan_versions

log = logging.getLogger("keras_ssl.serving")
RETRIES = 5  # after an OSError, as in TensorFlow Serving
FIRST_RETRY_SECONDS = 0.5  # each further retry waits twice as long
MAX_SKIPPED = 16  # broken newest versions after which older ones are not tried
MAX_FILES = 10_000  # and folders in a version
GRAPH = "saved_model.pb"


class _Failure(typing.NamedTuple):
    """A version that could not be loaded: its files, failed attempts, and when to try again."""

    fingerprint: dict | tuple
    attempts: int
    due: float  # of time.monotonic; inf for only after the files have changed


class Loader:
    """Loads and warms up versions of models.

    After an OSError, for example of a network disk, a version is retried `RETRIES` times, with growing
    delays. After any other error, and after the last retry, it is retried when its files have changed.

    Args:
        session_config: tf.compat.v1.ConfigProto of the Sessions, or None.
        states: States, in which the loader records the versions that it tries.

    Attributes:
        stopped: threading.Event; once it is set, nothing is loaded any more.
        attempts: collections.Counter of (path of a version, "success" or "fail").
    """

    def __init__(self, session_config, states):
        self._session_config, self._states = session_config, states
        self._failures = {}  # path -> _Failure
        self._warnings = {}  # model -> last logged warning about its folder
        self.stopped = threading.Event()
        self.attempts = collections.Counter()

    def load_versions(self, model, served, publish):
        """Loads the versions of a model that its policy selects, newest first.

        Args:
            model: ModelConfig proto.
            served: collection of the versions that are loaded already.
            publish: function of (version, Servable) that is called with each loaded version. It returns
                whether it takes the Servable; otherwise the Servable is closed.

        Returns:
            set of the versions that should be served; None to keep all versions that are served now.
        """
        try:
            found = scan_versions(model.base_path)
        except OSError as error:  # as in TensorFlow Serving: a network disk may be away briefly
            self._warn(model.name, f"its loaded versions stay, no new ones are found: {error}")
            return None
        self._warn(model.name, "")
        policy = model.model_version_policy
        count = len(found)
        if policy.HasField("specific"):
            found = {v: found[v] for v in found if v in policy.specific.versions}
        elif not policy.HasField("all"):
            count = policy.latest.num_versions or 1
        available = set()
        # One more for each version that cannot be loaded.
        for version in sorted(found, reverse=True)[: count + MAX_SKIPPED]:
            if len(available) == count:
                break
            if version in served or self._load(model.name, version, Path(found[version]), publish):
                available.add(version)
        return None if found and not available else available

    def forget(self, folder):
        """Forgets the failures of the versions of a model, so that they are due at once."""
        for path in [path for path in self._failures if path.parent == Path(folder)]:
            del self._failures[path]

    def wait_for_retry(self):
        """Waits until all versions that failed by an OSError are due; returns False if there are none."""
        waits = [f.due - time.monotonic() for f in self._failures.values() if f.due < math.inf]
        return bool(waits) and not self.stopped.wait(max(0.0, *waits))

    def _load(self, name, version, path, publish):
        """Loads and publishes a version if it is due; returns whether that succeeded."""
        found = fingerprint(path)
        failure = self._failures.get(path)
        waits = failure and failure.fingerprint == found and time.monotonic() < failure.due
        if found is None or waits or self.stopped.is_set():
            return False
        self._states.set(name, version, State.LOADING)
        try:
            servable = self._attempt(path, found)
        except (OSError, ValueError) as error:
            code = "UNAVAILABLE" if isinstance(error, OSError) else "FAILED_PRECONDITION"
            self._states.set(name, version, State.END, grpc.StatusCode[code], str(error))
            self.attempts[str(path), "fail"] += 1
            log.warning(
                "%s version %d is skipped: %s", name, version, error, exc_info=error.__cause__
            )
            return False
        self.attempts[str(path), "success"] += 1
        if not publish(version, servable):
            servable.close()
            return False
        self._states.set(name, version, State.AVAILABLE)
        log.info("%s version %d is available", name, version)
        return True

    def _attempt(self, path, found):
        """Loads and warms up a version with the fingerprint `found`, or remembers the failure.

        Raises:
            OSError: the file system failed; the message says when the next attempt is.
            ValueError: the version cannot be loaded unless its files change.
        """
        try:
            if isinstance(found, tuple):
                error, reason = found
                raise error(f"path {str(path)!r} {reason}")
            servable = _loaded(path, self._session_config)
        except OSError as error:
            raise self._later(path, found, error) from None
        # A damaged graph can raise any error, which affects this version only.
        except Exception as error:
            self._failures[path] = _Failure(found, 0, math.inf)
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                f"path {str(path)!r} cannot be served: {type(error).__name__}: {first_line(error)}"
            ) from error
        self._failures.pop(path, None)
        return servable

    def _warn(self, name, message):
        """Logs a warning about the folder of a model, unless it is the same as at the last poll."""
        if message and self._warnings.get(name) != message:
            log.warning("%s: %s", name, message)
        self._warnings[name] = message

    def _later(self, path, found, error):
        """Remembers a failed attempt and returns an OSError that says when the next one follows."""
        before = self._failures.get(path)
        same = before is not None and before.fingerprint == found
        attempts = before.attempts + 1 if same else 1
        if attempts > RETRIES:
            self._failures[path] = _Failure(found, 0, math.inf)
            return OSError(f"{first_line(error)} (after {RETRIES} retries)")
        delay = FIRST_RETRY_SECONDS * 2 ** (attempts - 1)
        self._failures[path] = _Failure(found, attempts, time.monotonic() + delay)
        return OSError(f"{first_line(error)} (retry {attempts} of {RETRIES} in {delay:g} s)")


def fingerprint(path):
    """Describes the files of a version, to notice that they change, for example while they are copied.

    Args:
        path: pathlib.Path of the version.

    Returns:
        dict from names to sizes and times; or (class of an error, str) if the version must not be loaded,
        since it has too many files, something that is neither a file nor a folder, or cannot be read;
        or None if a file disappears meanwhile.
    """
    found, folders = {}, [str(path)]
    try:
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    status = _status(entry)
                    found[entry.path] = status and (
                        status.st_size, status.st_mtime_ns, status.st_ctime_ns
                    )  # fmt: skip
                    if len(found) > MAX_FILES:
                        return ValueError, f"has more than {MAX_FILES} files"
                    # Links to folders are not followed: they may form an endless circle.
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif status and stat.S_IFMT(status.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
                        name = str(Path(entry.path).relative_to(path))
                        return (
                            ValueError,
                            f"contains {name!r}, which is neither a file nor a folder",
                        )
    except FileNotFoundError:
        return None
    except OSError as error:
        return OSError, f"cannot be read: {error}"
    return found


def _status(entry):
    """Returns the os.stat_result of an os.DirEntry, None for a broken symlink or a symlink loop."""
    try:
        return entry.stat()
    except OSError as error:
        # ELOOP may be temporary, since automounted folders have it, too. Waiting for it is only worthwhile
        # for the graph: a circle of other links would delay the start until the last retry.
        nowhere = error.errno == errno.ENOENT or (
            error.errno == errno.ELOOP and entry.name != GRAPH
        )
        if nowhere and entry.is_symlink():
            return None
        raise


def _loaded(path, session_config):
    servable = Servable(path, session_config)
    try:
        servable.warm_up()
    except BaseException:
        servable.close()
        raise
    return servable
