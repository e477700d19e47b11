"""The keras-ssl command, whose subcommands import TensorFlow only when they need it."""

import re
import sys
import warnings

import click

import keras_ssl as kssl
from keras_ssl.cli import (
    data_service,
    duplicates,
    evaluate,
    explore,
    export,
    extract,
    index,
    pretrain,
    preview,
    quickstart,
    search,
    serve,
    tasks,
    zoo,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kssl.__version__, prog_name="keras-ssl")
def cli():
    """Self-supervised pretext tasks: from unlabeled images to served features."""


for _command in (
    tasks.tasks,
    preview.preview,
    pretrain.pretrain,
    evaluate.evaluate,
    export.export,
    serve.serve,
    extract.extract,
    search.search,
    index.index,
    duplicates.duplicates,
    explore.explore,
    quickstart.quickstart,
    data_service.data_service,
    zoo.zoo,
):
    cli.add_command(_command)


def main():
    """Runs the command; prints errors of the user in one line and exits with code 2."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="keras_ssl")
    warnings.showwarning = lambda message, *_: click.echo(
        f"keras-ssl: warning: {message}", err=True
    )
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        _fail(error.format_message())
    except (KeyboardInterrupt, click.Abort):  # before RuntimeError, which Abort is
        click.echo("keras-ssl: stopped", err=True)
        sys.exit(130)
    except (
        ValueError, OSError, RuntimeError, ImportError, FloatingPointError, MemoryError, *_tensorflow_errors()
    ) as error:  # fmt: skip
        _fail(_out_of_memory(error) or str(error) or "not enough memory")  # a bare MemoryError


def _tensorflow_errors():
    """Returns the exception classes of TensorFlow, if it has been imported."""
    tf = sys.modules.get("tensorflow")
    return (tf.errors.OpError,) if tf else ()


def _out_of_memory(error):
    """Returns a sentence for TensorFlow's error, which names its kernel, or None for any other error."""
    tf = sys.modules.get("tensorflow")
    if not tf or not isinstance(error, tf.errors.ResourceExhaustedError):
        return None
    tensor = re.search(r"tensor with shape(\[[\d,]*\])", str(error))
    what = f"a tensor of shape {tensor[1]}" if tensor else "the model"
    return f"not enough memory for {what}: choose a smaller network, image size or batch size"


def _fail(message):
    click.echo(f"keras-ssl: {' '.join(message.split())}", err=True)
    sys.exit(2)
