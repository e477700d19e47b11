"""Loads, serves and unloads the versions of models."""

import contextlib
import gc
import logging
import threading

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from keras_ssl.serving.server.configs import check_models
from keras_ssl.serving.server.errors import StatusError, invalid_argument
from keras_ssl.serving.server.servable import Servable
from keras_ssl.zoo import versions

State = get_model_status_pb2.ModelVersionStatus
Code = grpc.StatusCode
log = logging.getLogger("keras_ssl.serving")


class _Version:
    """A loaded version, the number of requests that use it, and whether it is being unloaded."""

    def __init__(self, servable):
        self.servable, self.users, self.retired = servable, 0, False


class Models:
    """The loaded versions of the models in a ModelServerConfig.

    A new version is loaded and warmed up while the old one serves, and the old one is closed after
    its last request. A version that cannot be loaded is skipped for the next older one, and tried
    again when its files have changed.

    Args:
        config: ModelServerConfig proto with a model_config_list.
        session_config: tf.compat.v1.ConfigProto of the Sessions, or None.
        any_labels: bool, allow a new label for a version that is not available yet.

    Raises:
        ValueError: the config is invalid.
    """

    def __init__(self, config, session_config=None, any_labels=False):
        self._config, self._session_config = config, session_config
        self._any_labels = any_labels
        self._served = {}  # model -> {version: _Version}
        self._states = {}  # model -> {version: (State, code, message)}
        self._failed = {}  # directory -> fingerprint of the files that could not be loaded
        self._labels = {}  # model -> {label: version}
        self._lock = threading.Lock()  # protects the dicts above; never held during slow operations
        self._changing = threading.RLock()  # held while versions are loaded and unloaded
        try:
            check_models(config)
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
            StatusError: INVALID_ARGUMENT without a name or with an unknown label, NOT_FOUND for a
                model or version that is not loaded.
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
        with self._lock:
            states = dict(self._states.get(spec.name, {}))
        if number is None and not states:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        if number is not None and number not in states:
            raise StatusError(
                Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(states if number is None else [number], reverse=True):
            state, code, message = states[version]
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_code, entry.status.error_message = code, message
        return response

    def reload(self, config):
        """Switches to another ModelServerConfig and returns when its models are loaded.

        Raises:
            StatusError: the config is invalid, in which case nothing has changed; or no version of a
                new model can be loaded.
        """
        with self._changing:
            check_models(config)
            # Checked before versions change, as in TensorFlow Serving: a label moves only to a
            # version that is available already, and never to one that is being loaded.
            labels = self._checked_labels(config)
            new = {model.name for model in config.model_config_list.config} - set(self.names())
            with self._lock:
                self._config, self._labels = config, labels
            self.update()
            missing = sorted(new - set(self.names()))
            if missing:
                raise StatusError(
                    Code.FAILED_PRECONDITION,
                    f"{len(missing)} model(s) did not become available: "
                    + "; ".join(self.why_unavailable(name) for name in missing),
                )

    def update(self):
        """Polls the folders once: loads new versions and unloads those no longer configured."""
        with self._changing:
            configured = list(self._config.model_config_list.config)
            for model in configured:
                self._update_model(model)
            for name in set(self._served) - {model.name for model in configured}:
                self._unload(name, list(self._served[name]))
                with self._lock:
                    del self._served[name]

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
        with self._lock:
            messages = [message for _, _, message in self._states.get(name, {}).values() if message]
        return f"{name}: " + ("; ".join(messages) or "no version (numeric folder) in its base_path")

    def close(self):
        """Unloads every version."""
        with self._changing:
            for name in list(self._served):
                self._unload(name, list(self._served[name]))

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

    def _update_model(self, model):
        found = versions(model.base_path)
        policy = model.model_version_policy
        count = len(found)
        if policy.HasField("specific"):
            found = {v: found[v] for v in found if v in policy.specific.versions}
        elif not policy.HasField("all"):
            count = policy.latest.num_versions or 1
        available = []
        served = self._served.setdefault(model.name, {})
        # Newest first, and one further for each that cannot be loaded.
        for version in sorted(found, reverse=True):
            if len(available) == count:
                break
            if version in served or self._load(model.name, version, found[version]):
                available.append(version)
        # If no version is left, keep the old ones: a network disk may be away for a moment.
        if available:
            self._unload(model.name, set(served) - set(available))

    def _load(self, name, version, path):
        """Loads and warms up a version; returns whether that succeeded."""
        fingerprint = _fingerprint(path)
        if fingerprint is None or self._failed.get(path) == fingerprint:
            return False
        self._set_state(name, version, State.LOADING)
        servable = None
        try:
            servable = Servable(path, self._session_config)
            servable.warm_up()
        except ValueError as error:
            if servable is not None:
                servable.close()
            self._failed[path] = fingerprint
            code = Code.FAILED_PRECONDITION.value[0]
            self._set_state(name, version, State.END, code, str(error))
            log.warning("%s version %d is skipped: %s", name, version, error)
            return False
        with self._lock:
            self._served[name][version] = _Version(servable)
        self._set_state(name, version, State.AVAILABLE)
        log.info("%s version %d is available", name, version)
        return True

    def _unload(self, name, numbers):
        for version in numbers:
            with self._lock:
                entry = self._served[name].pop(version)
                entry.retired = True
                unused = not entry.users
            self._set_state(name, version, State.END)
            log.info("%s version %d is unloaded", name, version)
            if unused:
                entry.servable.close()
        if numbers:
            gc.collect()  # graphs are full of reference cycles, which would keep their memory

    def _set_state(self, name, version, state, code=0, message=""):
        with self._lock:
            self._states.setdefault(name, {})[version] = (state, code, message)


def _fingerprint(path):
    """Returns names, sizes and modification times of a version's files, None if one disappears.

    The fingerprint changes while the version is still being copied.
    """
    try:
        return {
            str(file): (stat.st_size, stat.st_mtime_ns)
            for file in path.rglob("*")
            if (stat := file.stat()) and file.is_file()
        }
    except OSError:
        return None
