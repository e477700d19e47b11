"""Polls the model folders and the configuration while the server runs."""

import logging
import threading
import time
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

    Attributes:
        is_file: bool, whether the source is a file.
    """

    def __init__(self, directory, config):
        self._directory, self._config = directory, config
        self._models = {}  # found in the folder so far
        self.is_file = isinstance(config, str | Path)

    def read(self):
        """Returns the current ModelServerConfig of the folder or the file.

        With a folder, a model whose own folder has disappeared stays in the config: it continues to be
        served, like a model of a config file.

        Raises:
            ValueError: the folder has no models, or the file cannot be parsed.
        """
        if self._directory is not None:
            self._models |= models_in(self._directory)
            return config_of(dict(sorted(self._models.items())))
        if self.is_file:
            return read(self._config, model_server_config_pb2.ModelServerConfig)
        return self._config


class Poller:
    """Keeps Models up to date from a background thread.

    As in TensorFlow Serving, a configuration file is applied each time it is read, which undoes changes by
    HandleReloadConfigRequest. With a folder of models, this happens only when new models appear in it.

    Args:
        models: Models, with the config that `source` has now.
        source: ConfigSource.
        poll_seconds: float, interval between two checks for new versions; 0 for never.
        config_poll_seconds: float, interval between two reads of the config; 0 for never.
    """

    def __init__(self, models, source, poll_seconds, config_poll_seconds):
        self._models, self._source, self._config = models, source, models.config
        self._poll_seconds, self._config_poll_seconds = poll_seconds, config_poll_seconds
        self._reading_seconds = 0.0  # duration of the last read of the config
        self._errors = {}  # function -> its last error, which is logged once
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self):
        """Starts polling."""
        self._thread.start()

    def stop(self):
        """Stops polling, without waiting for a model that is being loaded."""
        self._stopped.set()

    def join(self, seconds):
        """Waits up to `seconds` for the thread to end, and returns whether it has."""
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self):
        intervals = [s for s in (self._poll_seconds, self._config_poll_seconds) if s > 0]
        if not intervals:
            return
        since_config = 0.0
        while not self._stopped.wait(min(intervals)):
            since_config += min(intervals)
            # A folder of 100,000 entries takes seconds to read, so reading takes at most a tenth of the time.
            wait = max(self._config_poll_seconds, 9 * self._reading_seconds)
            if self._config_poll_seconds > 0 and since_config >= wait:
                since_config = 0.0
                self._try(self._configure)
            if self._poll_seconds > 0:
                self._try(self._models.update)

    def _try(self, function):
        """Calls a function. After any error the loaded models continue to serve."""
        message = None
        try:
            function()
        except (ValueError, StatusError, OSError) as error:
            message = str(error)
            if self._errors.get(function) != message:
                log.error("the models could not be updated: %s", error)
        except Exception:
            log.exception("polling for new versions failed")
        self._errors[function] = message

    def _configure(self):
        start = time.monotonic()
        try:
            config = self._source.read()
        finally:
            self._reading_seconds = time.monotonic() - start
        if config != (self._models.config if self._source.is_file else self._config):
            self._config = config
            self._models.configure(config)
