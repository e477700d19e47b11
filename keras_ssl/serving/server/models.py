"""Loads the versions of models, selects one for each request, and unloads old ones."""

import contextlib
import logging
import threading

import grpc

from keras_ssl.serving.server import memory
from keras_ssl.serving.server.configs import check_models
from keras_ssl.serving.server.errors import StatusError, invalid_argument
from keras_ssl.serving.server.loading import RETRIES, Loader
from keras_ssl.serving.server.states import State, States

Code = grpc.StatusCode
log = logging.getLogger("keras_ssl.serving")


class _Version:
    """A loaded version, the number of requests that use it, and whether it is being unloaded."""

    def __init__(self, servable):
        self.servable, self.users, self.retired = servable, 0, False


class Models:
    """The loaded versions of the models in a ModelServerConfig.

    A new version is loaded and warmed up while the old one serves, and the old one is closed after its last
    request. If a version cannot be loaded, the next older one is loaded instead. The version is tried again
    after some seconds if the file system failed, and otherwise when its files have changed. The start waits
    for retries after errors of the file system.

    Args:
        config: ModelServerConfig proto with a model_config_list.
        session_config: tf.compat.v1.ConfigProto of the Sessions, or None.
        any_labels: bool, allow a new label for a version that is not available yet.

    Attributes:
        load_attempts: collections.Counter of (path of a version, "success" or "fail").

    Raises:
        ValueError: the config is invalid.
    """

    def __init__(self, config, session_config=None, any_labels=False):
        self._config, self._any_labels = config, any_labels
        self._served = {}  # model -> {version: _Version}
        self._states = States()
        self._loader = Loader(session_config, self._states)
        self.load_attempts = self._loader.attempts
        self._labels = {}  # model -> {label: version}
        self._lock = threading.Lock()  # protects the dicts above; never held during slow operations
        self._changing = threading.RLock()  # held while versions are loaded and unloaded
        self._heap, self._stale = memory.Heap(), False
        self._late = 0  # retired versions that requests still use
        try:
            check_models(config)
            self.update()
            for _ in range(RETRIES):
                if self._loader.wait_for_retry():
                    self.update()
            self._labels = self._checked_labels(config)
        except StatusError as error:
            self.close()
            raise ValueError(error.message) from None

    @contextlib.contextmanager
    def lease(self, spec):
        """Looks up the version that a ModelSpec selects, and keeps it open for the context.

        Yields:
            (version, Servable).

        Raises:
            StatusError: INVALID_ARGUMENT without a name or with an unknown label; NOT_FOUND for a model or
                version that is not loaded.
        """
        if not spec.name:
            raise invalid_argument(
                "Missing ModelSpec" if not spec.ByteSize() else "ModelSpec has no name specified."
            )
        number = self._selected(spec)
        with self._lock:
            served = self._served.get(spec.name, {})
            version = max(served, default=None) if number is None else number
            entry = served.get(version)
            if entry is None:
                choice = (
                    f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
                )
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {choice}")
            entry.users += 1
        try:
            yield version, entry.servable
        finally:
            with self._lock:
                entry.users -= 1
                last = entry.retired and not entry.users
                self._late -= last
            if last:
                entry.servable.close()

    def status(self, spec):
        """Builds the GetModelStatusResponse for all versions, or for the one that a ModelSpec selects.

        Raises:
            StatusError: INVALID_ARGUMENT without a name, NOT_FOUND for an unknown model or version.
        """
        if not spec.ByteSize():
            raise invalid_argument("Missing ModelSpec")
        number = self._selected(spec)
        return self._states.response(spec.name, number)

    @property
    def config(self):
        """The ModelServerConfig that is served now."""
        with self._lock:
            return self._config

    def reload(self, config):
        """Switches to another ModelServerConfig, or changes nothing.

        New models are loaded before others are unloaded, so both are in memory for a moment.

        Args:
            config: ModelServerConfig proto.

        Raises:
            StatusError: the config is invalid, or no version of a new model can be loaded.
        """
        with self._changing:
            labels = self._labels_of(config)
            added = {
                model.name: (model, {})
                for model in config.model_config_list.config
                if not self.serves(model.name)
            }
            states = {name: self._states.of(name) for name in added}
            for model, served in added.values():
                self._load_versions(model, served)
            missing = sorted(name for name, (_, served) in added.items() if not served)
            if missing:
                error = self._unavailable(missing)
                for name, (model, served) in added.items():
                    self._states.restore(name, states[name])
                    self._loader.forget(model.base_path)  # the next request tries again
                    for entry in served.values():
                        entry.servable.close()
                raise error
            with self._lock:
                self._config, self._labels = config, labels
                self._served.update({name: served for name, (_, served) in added.items()})
            self.update()

    def configure(self, config):
        """Switches to another ModelServerConfig as far as its models can be loaded.

        This is for the configuration file, which TensorFlow Serving applies in the same way.

        Args:
            config: ModelServerConfig proto.

        Raises:
            StatusError: the config is invalid, in which case nothing has changed; or no version of a
                new model can be loaded, while all others are served.
        """
        with self._changing:
            labels = self._labels_of(config)
            new = {model.name for model in config.model_config_list.config} - set(self.names())
            with self._lock:
                self._config, self._labels = config, labels
            self.update()
            if missing := sorted(new - set(self.names())):
                raise self._unavailable(missing)

    def update(self):
        """Polls the folders once: loads new versions, and unloads versions that are no longer configured."""
        with self._changing:
            configured = list(self._config.model_config_list.config)
            for model in configured:
                if self._loader.stopped.is_set():
                    return
                with self._lock:
                    served = self._served.setdefault(model.name, {})
                available = self._load_versions(model, served)
                # If none can be loaded, the old versions stay.
                if available is not None:
                    self._unload(model.name, set(served) - available)
            for name in set(self._served) - {model.name for model in configured}:
                self._unload(name, list(self._served[name]))
                with self._lock:
                    del self._served[name]
            if self._stale and self._late:
                self._heap.thaw()
            elif self._stale:
                self._stale = False
                self._heap.collect()  # graphs are full of reference cycles, which would keep their memory

    def names(self):
        """Returns the names of the models with an available version, sorted."""
        with self._lock:
            return sorted(name for name, served in self._served.items() if served)

    def serves(self, name):
        """Returns whether a model has an available version."""
        return bool(self._served.get(name))

    def versions(self, name):
        """Returns the available versions of a model, ascending."""
        with self._lock:
            return sorted(self._served.get(name, {}))

    def why_unavailable(self, name):
        """Returns the reasons why versions of a model could not be loaded, in one sentence."""
        return self._states.why_unavailable(name)

    def stop_loading(self):
        """Stops loading: a version that is being loaded is discarded as soon as it is loaded."""
        self._loader.stopped.set()

    def close(self):
        """Unloads every version, without waiting for a version that is being loaded."""
        self.stop_loading()
        with self._lock:
            served = {name: list(versions) for name, versions in self._served.items()}
        for name, versions in served.items():
            self._unload(name, versions)
        self._heap.close()

    def _selected(self, spec):
        """Returns the version that a ModelSpec selects by number or label; None for the newest."""
        if spec.HasField("version"):
            return spec.version.value
        if not spec.version_label:
            return None
        with self._lock:
            labels = self._labels.get(spec.name, {})
            if spec.version_label not in labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            return labels[spec.version_label]

    def _labels_of(self, config):
        """Checks a config for an update, and returns its labels."""
        check_models(config)
        # Checked before versions change, as in TensorFlow Serving: a label moves only to a version
        # that is available already, and never to one that is being loaded.
        return self._checked_labels(config)

    def _checked_labels(self, config):
        """Returns the labels of a config if each names an available version."""
        labels = {}
        for model in config.model_config_list.config:
            labels[model.name] = dict(model.version_labels)
            for label, version in model.version_labels.items():
                old = self._labels.get(model.name, {}).get(label, version)
                unavailable = version not in self.versions(model.name)
                if unavailable and not (self._any_labels and old == version):
                    raise StatusError(
                        Code.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return labels

    def _load_versions(self, model, served):
        """Calls `Loader.load_versions` with `served`, a dict of _Version by number that it fills."""

        def publish(version, servable):
            with self._lock:
                if self._loader.stopped.is_set():  # `close` was called
                    return False
                served[version] = _Version(servable)
            self._stale = True
            return True

        return self._loader.load_versions(model, served, publish)

    def _unload(self, name, numbers):
        for version in numbers:
            with self._lock:
                entry = self._served.get(name, {}).pop(version, None)
                if entry is None:  # `close` was faster
                    continue
                entry.retired = True
                unused = not entry.users
                self._late += not unused
            self._states.set(name, version, State.END)
            log.info("%s version %d is unloaded", name, version)
            if unused:
                entry.servable.close()
            self._stale = True

    def _unavailable(self, names):
        reasons = "; ".join(self.why_unavailable(name) for name in names)
        return StatusError(
            Code.FAILED_PRECONDITION, f"{len(names)} model(s) did not become available: {reasons}"
        )
