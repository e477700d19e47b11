"""`keras-ssl explore`: a web page of a table, for this machine only."""

import secrets
import socket

import click

from keras_ssl.cli import common, table_options


@click.command()
@click.argument("table")
@click.option(
    "--port", default=8600, show_default=True, type=click.IntRange(0, 65535), help="0: a free port."
)
@table_options.query_model_option
@table_options.server_options
def explore(table, port, model, server, retries, **tls):
    """Serves a web page with the thumbnails of a table, their neighbors and a map.

    Files dropped on the page are queries; files that are not in the table need --model. The page is served on
    127.0.0.1, until Ctrl-C, and only with the token in its address.
    """
    from aiohttp import web

    from keras_ssl.tables.explore import HOST, application

    table_options.check_model(model, server, tls)
    opened = table_options.open_table("TABLE", table)
    listener = _listen(HOST, port)
    encoder = None
    if model:
        common.import_tensorflow()
        from keras_ssl.tables import neighbors

        client = table_options.connect(server, model, retries, tls) if server else model
        encoder = neighbors.encoder_of(opened, client)
    token = secrets.token_urlsafe(16)
    address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
    click.echo(f"{address} shows {table}; Ctrl-C stops")
    web.run_app(application(opened, encoder, token), sock=listener, print=None, access_log=None)


def _listen(host, port):
    """Returns a socket that is bound to a port of this machine."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--port {port} on {host} cannot be used ({error.strerror}): give another, or 0 for a free one"
        ) from None
    return listener
