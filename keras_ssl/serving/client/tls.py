"""Client credentials for TLS and mutual TLS."""

from pathlib import Path

import grpc


def credentials(ca=None, certificate=None, key=None):
    """Reads channel credentials for TLS from PEM files.

    Args:
        ca: path of the certificate of the authority that signed the server's certificate, or None
            for the root certificates that gRPC ships with.
        certificate: path of the client's own certificate for mutual TLS, or None.
        key: path of the private key of `certificate`, or None.

    Returns:
        grpc.ChannelCredentials.

    Raises:
        ValueError: only one of `certificate` and `key` is given.
        OSError: a file cannot be read.

    Example:
        >>> credentials("ca.crt", "client.crt", "client.key")           # doctest: +SKIP
    """
    if (certificate is None) != (key is None):
        raise ValueError(
            "certificate and key belong together: give both or neither, got "
            f"certificate={certificate} and key={key}"
        )
    return grpc.ssl_channel_credentials(
        *(None if name is None else Path(name).read_bytes() for name in (ca, key, certificate))
    )
