"""Options and checks that extract, search, duplicates and explore share."""

import click

import keras_ssl as kssl
from keras_ssl.cli import common
from keras_ssl.tables import store

server_options = common.options(
    click.option("--server", metavar="HOST:PORT", help="Send the images to this server over gRPC."),
    click.option(
        "--retries", default=5, show_default=True, type=click.IntRange(0),
        help="Retries of a request while the server is unavailable.",
    ),
    click.option("--ca", metavar="FILE", help="TLS: PEM of the authority behind the server's certificate."),
    click.option("--certificate", metavar="FILE", help="Mutual TLS: PEM of this client's certificate."),
    click.option("--key", metavar="FILE", help="Mutual TLS: PEM of the certificate's private key."),
)  # fmt: skip

query_model_option = click.option(
    "--model",
    help="The table's model, for images that are not in it: an export or .keras file; with --server its name "
    "there.",
)


def check_model(model, server, tls):
    """Raises ValueError if the options of the model contradict each other, or the model does not exist.

    Args:
        model, server: str or None.
        tls: dict of the options `ca`, `certificate` and `key`.
    """
    if server and not model:
        raise ValueError("--server needs --model, the name of the model there")
    if not server and any(tls.values()):
        raise ValueError("--ca, --certificate and --key need --server")
    if model and not server:
        common.check_model(model)


def connect(server, model, retries, tls, batch_size=64):
    """Returns the FeatureClient of a server."""
    from keras_ssl import serving

    credentials = serving.credentials(**tls) if any(tls.values()) else None
    return kssl.FeatureClient(
        server, model, batch_size=batch_size, retries=retries, credentials=credentials
    )


def open_table(argument, path):
    """Opens a table that has features."""
    store.check_exists(argument, path)
    table = store.FeatureTable(path)
    if not table.count():
        raise ValueError(f"{argument}: {path!r} is empty: extract features into it first")
    return table
