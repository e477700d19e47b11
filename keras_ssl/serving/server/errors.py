"""Errors that become the status of a response: a gRPC status and a message."""

import logging

import grpc
from google.protobuf.message import DecodeError

log = logging.getLogger("keras_ssl.serving")
MAX_MESSAGE = 1024  # bytes: TensorFlow Serving truncates its messages here
CODES = {code.value[0]: code for code in grpc.StatusCode}


class StatusError(Exception):
    """An error that is sent to the client as the status of the response.

    Args:
        code: grpc.StatusCode.
        message: str, for the client.
    """

    def __init__(self, code, message):
        # Bytes, not characters: gRPC triples bytes that are not ASCII, and clients accept 8 KiB.
        message = (
            message[:MAX_MESSAGE].encode(errors="replace")[:MAX_MESSAGE].decode(errors="ignore")
        )
        super().__init__(message)
        self.code, self.message = code, message


def invalid_argument(message):
    """Returns a StatusError for a mistake of the client."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def parse(kind, data):
    """Parses bytes as a protobuf message of the class `kind`; raises INVALID_ARGUMENT if that fails."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise invalid_argument(f"cannot parse the request as {kind.DESCRIPTOR.name}") from None


def from_tensorflow(error):
    """Converts a tf.errors.OpError to a StatusError of the same code."""
    return StatusError(CODES[error.error_code], first_line(error))


def from_exception(error, request="a request"):
    """Returns `error` if it is a StatusError; otherwise logs it and returns an INTERNAL one.

    The traceback is for the log and not for the client. It is dropped: exception, traceback and frames often
    refer to each other, and would keep messages and arrays until the next garbage collection.

    Args:
        error: Exception.
        request: str, names the request in the log.
    """
    status = error
    if not isinstance(error, StatusError):
        log.error("%s failed", request, exc_info=error)
        status = StatusError(grpc.StatusCode.INTERNAL, "internal error, see the server's log")
    while error is not None:
        context, error.__traceback__, error.__context__ = error.__context__, None, None
        error = context
    return status


def first_line(error):
    """Returns the first line of an exception's message, without TensorFlow's graph location."""
    message = getattr(error, "message", None) or str(error)
    message = message.removeprefix("Graph execution error:").strip()
    return message.split("\n")[0] or type(error).__name__
