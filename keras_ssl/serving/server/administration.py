"""HandleReloadConfigRequest: who may replace the configuration, and which folders it may name."""

import os
from pathlib import Path

import grpc

from keras_ssl.serving.server.configs import check_models
from keras_ssl.serving.server.errors import StatusError

RELOADS = ("off", "socket", "all")


class Administration:
    """Replaces the configuration of models for clients that may do so.

    A SavedModel can read and write files, so a client that may load any folder can read and write files, too.

    Args:
        models: Models.
        allowed: which clients may reload: "off" for nobody, "socket" for clients of the UNIX socket, "all"
            for everybody who reaches a gRPC port.
        roots: sequence of paths; a reload may name folders inside these, and folders that are served now or
            were served at the start.
    """

    def __init__(self, models, allowed, roots):
        self._models, self._allowed = models, allowed
        self._roots = [Path(os.path.realpath(root)) for root in roots]
        self._at_start = _folders(models.config)

    def check_peer(self, peer):
        """Raises PERMISSION_DENIED for clients that may not reload.

        Args:
            peer: str, the client as gRPC names it, such as "unix:/run/models" or "ipv4:10.0.0.1:4711".
        """
        if self._allowed == "off":
            raise _denied(
                "HandleReloadConfigRequest is off: change the configuration file, or start the server "
                "with --reload_config=socket or --reload_config=all"
            )
        if self._allowed == "socket" and not peer.startswith("unix:"):
            raise _denied("HandleReloadConfigRequest is accepted on the UNIX socket only")

    def reload(self, config):
        """Switches to another ModelServerConfig, or changes nothing; call `check_peer` first.

        Args:
            config: ModelServerConfig proto.

        Raises:
            StatusError: PERMISSION_DENIED, or as `Models.reload`.
        """
        check_models(config)
        known = self._at_start | _folders(self._models.config)
        for model in config.model_config_list.config:
            path = Path(os.path.realpath(model.base_path))
            if path not in known and not any(path.is_relative_to(root) for root in self._roots):
                raise _denied(
                    f"base_path {model.base_path!r} of model {model.name} is in none of the folders "
                    "that may be served: start the server with --reload_config_roots to allow it"
                )
        self._models.reload(config)


def _folders(config):
    return {Path(os.path.realpath(m.base_path)) for m in config.model_config_list.config}


def _denied(message):
    return StatusError(grpc.StatusCode.PERMISSION_DENIED, message)
