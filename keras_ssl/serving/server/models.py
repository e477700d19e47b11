"""Which versions of which models are served: found by polling, loaded first, unloaded when unused."""

import contextlib
import gc
import logging
import threading

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from keras_ssl.serving.server.configs import check_models
from keras_ssl.serving.server.requests import Refusal, invalid
from keras_ssl.serving.server.servable import Servable, versions

State = get_model_status_pb2.ModelVersionStatus
log = logging.getLogger("keras_ssl.serving")


class _Version:
    """A version that is served: how many requests hold it, and whether it is to go."""

    def __init__(self, servable):
        self.servable, self.users, self.retired = servable, 0, False


class Models:
    """The versions of the models of a ModelServerConfig, kept as their folders and the config change.

    A new version is loaded and warmed up while the old one serves, and the old one is closed when its
    last request is done. A version that does not load is passed over for the next older one, and
    tried again when its files have changed.

    Args:
        config: ModelServerConfig proto with a model_config_list.
        session_config: tf.compat.v1.ConfigProto of the Sessions, or None.
        any_labels: bool, let a new label name a version that is not available yet.

    Raises:
        ValueError: the config cannot be served.
    """

    def __init__(self, config, session_config=None, any_labels=False):
        self._config, self._session_config = config, session_config
        self._any_labels = any_labels
        self._served = {}  # model -> {version: _Version}
        self._states = {}  # model -> {version: (State, code, words)}
        self._failed = {}  # directory -> fingerprint of the files that did not load
        self._labels = {}  # model -> {label: version}
        self._lock = threading.Lock()  # of the dicts above, held for moments
        self._changing = threading.RLock()  # held while versions are loaded
        try:
            check_models(config)
            self.update()
            self._labels = self._checked_labels(config)
        except Refusal as refusal:
            self.close()
            raise ValueError(refusal.words) from None

    @contextlib.contextmanager
    def lease(self, spec):
        """(version, Servable) that a ModelSpec asks for; it stays open meanwhile.

        Raises:
            Refusal: INVALID_ARGUMENT without a name or with an unknown label, NOT_FOUND.
        """
        if not spec.name:
            raise invalid(
                "Missing ModelSpec" if not spec.ByteSize() else "ModelSpec has no name specified."
            )
        wanted = self._wanted(spec)
        with self._lock:
            served = self._served.get(spec.name, {})
            version = max(served, default=None) if wanted is None else wanted
            entry = served.get(version)
            if entry is None:
                request = (
                    f"Latest({spec.name})"
                    if wanted is None
                    else (f"Specific({spec.name}, {wanted})")
                )
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {request}"
                )
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
        """GetModelStatusResponse of a ModelSpec: of all versions known, or of the one it names.

        Raises:
            Refusal: INVALID_ARGUMENT without a name, NOT_FOUND for what is unknown.
        """
        if not spec.ByteSize():
            raise invalid("Missing ModelSpec")
        wanted = self._wanted(spec)
        with self._lock:
            states = dict(self._states.get(spec.name, {}))
        if wanted is None and not states:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}"
            )
        if wanted is not None and wanted not in states:
            raise Refusal(
                grpc.StatusCode.NOT_FOUND,
                f"Could not find version {wanted} of model {spec.name}",
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(states if wanted is None else [wanted], reverse=True):
            state, code, words = states[version]
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_code, entry.status.error_message = code, words
        return response

    def reload(self, config):
        """Serves another ModelServerConfig from now on; returns when its models are loaded.

        Raises:
            Refusal: the config cannot be served (nothing has changed then), or a new model has no
                version that loads.
        """
        with self._changing:
            check_models(config)
            # Before the versions change, as TensorFlow Serving does it: a label moves only to a
            # version that answers already, and never points at one that is being loaded.
            labels = self._checked_labels(config)
            new = {model.name for model in config.model_config_list.config} - set(self.names())
            with self._lock:
                self._config, self._labels = config, labels
            self.update()
            missing = sorted(new - set(self.names()))
            if missing:
                raise Refusal(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"{len(missing)} model(s) did not become available: "
                    + "; ".join(self.why_not(name) for name in missing),
                )

    def update(self):
        """Looks at the folders once: loads what is new, lets go of what is no longer wanted."""
        with self._changing:
            listed = list(self._config.model_config_list.config)
            for model in listed:
                self._update_model(model)
            for name in set(self._served) - {model.name for model in listed}:
                self._retire(name, list(self._served[name]))
                with self._lock:
                    del self._served[name]

    def names(self):
        """Names of the models that have a version which answers."""
        with self._lock:
            return sorted(name for name, served in self._served.items() if served)

    def serves(self, name):
        """Whether a model has a version that answers."""
        return bool(self._served.get(name))

    def versions(self, name):
        """Versions of a model that answer, ascending."""
        with self._lock:
            return sorted(self._served.get(name, {}))

    def why_not(self, name):
        """One sentence on why a model has no version that answers."""
        with self._lock:
            words = [words for _, _, words in self._states.get(name, {}).values() if words]
        return f"{name}: " + ("; ".join(words) or "no version (a numeric folder) in its base_path")

    def close(self):
        """Lets go of every version."""
        with self._changing:
            for name in list(self._served):
                self._retire(name, list(self._served[name]))

    def _wanted(self, spec):
        """Version that a ModelSpec names, by number or label; None for the newest."""
        if spec.HasField("version"):
            return spec.version.value
        if not spec.version_label:
            return None
        with self._lock:
            labels = self._labels.get(spec.name, {})
            if spec.version_label not in labels:
                raise invalid(f"Unrecognized servable version label: {spec.version_label}")
            return labels[spec.version_label]

    def _checked_labels(self, config):
        labels = {}
        for model in config.model_config_list.config:
            labels[model.name] = dict(model.version_labels)
            for label, version in model.version_labels.items():
                old = self._labels.get(model.name, {}).get(label, version)
                unavailable = version not in self.versions(model.name)
                if unavailable and not (self._any_labels and old == version):
                    raise Refusal(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"Request to assign label to version {version} of model {model.name}, "
                        "which is not currently available for inference",
                    )
        return labels

    def _update_model(self, model):
        found = versions(model.base_path)
        policy = model.model_version_policy
        number = len(found)
        if policy.HasField("specific"):
            found = {v: found[v] for v in found if v in policy.specific.versions}
        elif not policy.HasField("all"):
            number = policy.latest.num_versions or 1
        good = []
        served = self._served.setdefault(model.name, {})
        # Newest first, and further down for each that does not load.
        for version in sorted(found, reverse=True):
            if len(good) == number:
                break
            if version in served or self._load(model.name, version, found[version]):
                good.append(version)
        # A folder that is gone for a moment (a network disk) must not take the model down.
        if good:
            self._retire(model.name, set(served) - set(good))

    def _load(self, name, version, path):
        """Whether a version could be loaded and warmed up."""
        fingerprint = _fingerprint(path)
        if fingerprint is None or self._failed.get(path) == fingerprint:
            return False
        self._say(name, version, State.LOADING)
        servable = None
        try:
            servable = Servable(path, self._session_config)
            servable.warm_up()
        except ValueError as error:
            if servable is not None:
                servable.close()
            self._failed[path] = fingerprint
            code = grpc.StatusCode.FAILED_PRECONDITION.value[0]
            self._say(name, version, State.END, code, str(error))
            log.warning("%s version %d is passed over: %s", name, version, error)
            return False
        with self._lock:
            self._served[name][version] = _Version(servable)
        self._say(name, version, State.AVAILABLE)
        log.info("%s version %d is available", name, version)
        return True

    def _retire(self, name, numbers):
        for version in numbers:
            with self._lock:
                entry = self._served[name].pop(version)
                entry.retired = True
                unused = not entry.users
            self._say(name, version, State.END)
            log.info("%s version %d is unloaded", name, version)
            if unused:
                entry.servable.close()
        if numbers:
            gc.collect()  # a graph is full of cycles: its memory would wait for a chance

    def _say(self, name, version, state, code=0, words=""):
        with self._lock:
            self._states.setdefault(name, {})[version] = (state, code, words)


def _fingerprint(path):
    """Names, sizes and times of a version's files: another one means that it was copied further."""
    try:
        return {
            str(file): (stat.st_size, stat.st_mtime_ns)
            for file in path.rglob("*")
            if (stat := file.stat()) and file.is_file()
        }
    except OSError:  # a file went while we looked
        return None
