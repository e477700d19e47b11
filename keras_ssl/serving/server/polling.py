"""Polls the model folders and the configuration while the server runs."""

import logging
import threading
from pathlib import Path

from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.serving.server.configs import config_of, models_in, read
from keras_ssl.serving.server.errors import StatusError

log = logging.getLogger("keras_ssl.serving")


class ConfigSource:
    """Source of the ModelServerConfig: a folder of models, a file or a proto.

    Args:
        directory: a folder of models or the folder of one model; or None.
        config: ModelServerConfig proto or the path of a file with one; None if there is a `directory`.
    """

    def __init__(self, directory, config):
        self._directory, self._config = directory, config

    def read(self):
        """Returns the current ModelServerConfig of the folder or the file.

        Raises:
            ValueError: the folder has no models, or the file cannot be parsed.
        """
        if self._directory is not None:
            return config_of(models_in(self._directory))
        if isinstance(self._config, str | Path):
            return read(self._config, model_server_config_pb2.ModelServerConfig)
        return self._config


class Poller:
    """Keeps Models up to date from a background thread.

    Args:
        models: Models.
        source: ConfigSource.
        config: ModelServerConfig proto that `models` serves now.
        poll_seconds: float, interval between two checks for new versions; 0 for never.
        config_poll_seconds: float, interval between two readings of the config; 0 for never.
    """

    def __init__(self, models, source, config, poll_seconds, config_poll_seconds):
        self._models, self._source, self._config = models, source, config
        self._poll_seconds, self._config_poll_seconds = poll_seconds, config_poll_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        """Starts polling."""
        self._thread.start()

    def stop(self):
        """Stops polling, without waiting for a model that is being loaded."""
        self._stopped.set()

    def join(self, seconds):
        """Waits up to `seconds` for the thread to end."""
        self._thread.join(seconds)

    def _run(self):
        intervals = [s for s in (self._poll_seconds, self._config_poll_seconds) if s > 0]
        if not intervals:
            return
        since_config = 0.0
        while not self._stopped.wait(min(intervals)):
            since_config += min(intervals)
            try:
                if 0 < self._config_poll_seconds <= since_config:
                    since_config = 0.0
                    self._reload()
                if self._poll_seconds > 0:
                    self._models.update()
            except (ValueError, StatusError, OSError) as error:
                log.error("the models could not be updated: %s", error)
            except Exception:  # after any error, the loaded models continue to serve
                log.exception("polling for new versions failed")

    def _reload(self):
        config = self._source.read()
        if config != self._config:
            self._models.reload(config)
            self._config = config
