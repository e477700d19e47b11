"""The states of the versions of models, as GetModelStatus reports them."""

import threading

import grpc
from tensorflow_serving.apis import get_model_status_pb2

from keras_ssl.serving.server.errors import StatusError

State = get_model_status_pb2.ModelVersionStatus


class States:
    """Records the state of every version that a server has tried to load. Methods may run in any thread."""

    def __init__(self):
        self._states = {}  # model -> {version: (State, code, message)}
        self._lock = threading.Lock()

    def set(self, name, version, state, code=grpc.StatusCode.OK, message=""):
        """Records the state of a version: a State, and the code and message of an error."""
        with self._lock:
            self._states.setdefault(name, {})[version] = (state, code.value[0], message)

    def of(self, name):
        """Returns the states of a model: dict of version to (State, number of the code, message)."""
        with self._lock:
            return dict(self._states.get(name, {}))

    def restore(self, name, states):
        """Sets the states of a model back to what `of` returned."""
        with self._lock:
            self._states[name] = states

    def why_unavailable(self, name):
        """Returns the reasons why versions of a model could not be loaded, in one sentence."""
        messages = [message for _, _, message in self.of(name).values() if message]
        return f"{name}: " + ("; ".join(messages) or "no version (numeric folder) in its base_path")

    def response(self, name, number):
        """Builds the GetModelStatusResponse of a model for one version, or for all if `number` is None.

        Raises:
            StatusError: NOT_FOUND, unknown model or version.
        """
        states = self.of(name)
        if number is None and not states:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}"
            )
        if number is not None and number not in states:
            raise StatusError(
                grpc.StatusCode.NOT_FOUND, f"Could not find version {number} of model {name}"
            )
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(states if number is None else [number], reverse=True):
            state, code, message = states[version]
            entry = response.model_version_status.add(version=version, state=state)
            entry.status.error_code, entry.status.error_message = code, message
        return response
