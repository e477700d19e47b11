"""Every code block and command of the documentation runs here, or doc_pages.py lists the reason why not."""

import contextlib
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import cv2
import keras
import numpy as np
import pytest
from doc_pages import (
    CHEAPER,
    NO_COMMAND,
    NOT_RUN,
    PAGES,
    PARSED,
    blocks,
    commands,
    inline,
    parse_tool,
)
from google.protobuf import text_format
from PIL import Image, ImageDraw
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl import cli, serving
from keras_ssl.data import named
from keras_ssl.tasks import TASKS

PRETRAIN = "--epochs 1 --width 2 --blocks 1 --batch-size 8"  # appended: the last value counts
IN_BASH = r"curl |mv |pem\(\)|printf "  # run by bash, with a server on the ports that they name


def matches(table, text):
    return next((why for pattern, why in table if re.match(pattern, text)), None)


def cheaper(text, ports=()):
    for pattern, replacement in (*CHEAPER, *ports):
        text = re.sub(pattern, replacement, text)
    return text


# ---- Fixtures: the files and the server that the pages use.


def draw_images(folder):
    """Folders of images that the pages name."""
    rng = np.random.default_rng(0)
    for place in ("photos", "labeled/train", "labeled/test"):
        for label, name in enumerate(("blue", "red")):
            (folder / place / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 100, (36, 40, 3), np.uint8)
                pixels[8:20, 4:30, 2 - 2 * label] += 150
                Image.fromarray(pixels).save(folder / place / name / f"{i}.jpg")
    (folder / "videos").mkdir()
    code = cv2.VideoWriter_fourcc(*"mp4v")
    for name in ("a.mp4", "b.mp4"):
        writer = cv2.VideoWriter(str(folder / "videos" / name), cv2.CAP_FFMPEG, code, 25, (48, 40))
        for k in range(14):
            writer.write(
                np.roll(pixels, 2 * k, axis=1)[:, [*range(40), *range(8)]].repeat(2, axis=0)[:40]
            )
        writer.release()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(folder / "photos" / "red" / "0.jpg", folder / name)
    for writer in ("anna", "bert"):
        (folder / "pages" / writer).mkdir(parents=True)
        for i in range(2):
            page = Image.new("RGB", (300, 200), "white")
            for _ in range(12):
                x, y = map(int, rng.integers(10, 160, 2))
                shape = [x, y, x + 24, y + 24]
                if writer == "anna":
                    ImageDraw.Draw(page).ellipse(shape, outline="black", width=4)
                else:
                    ImageDraw.Draw(page).line(shape, "black", 4)
            page.save(folder / "pages" / writer / f"{i}.png")
    for name in ("ca.crt", "client.crt", "client.key", "server.crt", "server.key"):
        (folder / name).write_text("-----BEGIN-----\nof a PEM file\n-----END-----\n")


@pytest.fixture(scope="module")
def served(exported, tmp_path_factory):
    """A running server of the models that the pages name; as substitutions of its ports."""
    folder = tmp_path_factory.mktemp("served")
    for name in ("rotation_cifar10", "rotation_photos"):
        for version in ("1", "2"):
            shutil.copytree(exported / "1", folder / name / version)
    config = serving.server.configs.config_of({p.name: p for p in folder.iterdir()})
    for model in config.model_config_list.config:
        model.model_version_policy.specific.versions.extend([1, 2])
    with serving.Server(config=config, rest_port=0) as server:
        yield (
            ("localhost:8500", f"localhost:{server.port}"),
            ("localhost:8501", f"localhost:{server.rest_port}"),
        )


@pytest.fixture(scope="module")
def trained(task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    task.save(folder / "rotation_cifar10.keras")
    return Trained(folder)


class Trained:
    """The .keras files that pages write, for pages that run the same command, or only read such a file."""

    def __init__(self, folder):
        self.folder, self.commands = folder, {}

    def keep(self, arguments):
        (file,) = Path().glob(f"{arguments[1]}_*.keras")
        shutil.copy(file, self.folder)
        self.commands[tuple(arguments)] = file.name

    def copy(self, arguments):
        file = self.commands.get(tuple(arguments))
        return file and shutil.copy(self.folder / file, file)

    def provide(self, file):
        if not (self.folder / file).exists():
            (row,) = [row for row in TASKS if row.name == file.rsplit("_", 1)[0]]
            task = row.task(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
            x, _ = next(iter(task.dataset(kssl.data.from_folder("photos", 32), 4)))
            task(x)  # creates the weights
            task.save(self.folder / file)
        shutil.copy(self.folder / file, file)


@pytest.fixture
def page(command, served, trained, exported, tmp_path, monkeypatch):
    """Runs the steps of a page, in one folder and one namespace."""
    monkeypatch.setattr(named, "SCENES", (40, 8))  # to render 12,000 takes minutes
    draw_images(tmp_path)
    shutil.copytree(exported / "1", tmp_path / "saved_models" / "rotation_cifar10" / "1")
    runner = Page(command, served, trained)
    yield runner
    keras.config.set_dtype_policy("float32")


class Page:
    def __init__(self, command, served, trained):
        self.command, self.served, self.trained = command, served, trained
        self.names, self.skipped = {"__name__": "page"}, []

    def run(self, block):
        """Runs a block, or parses it; returns False if its language is unknown."""
        if matches(((re.escape(start), why) for start, why in NO_COMMAND), block.text):
            return True
        if block.text.startswith("model_config_list {"):
            text_format.Parse(block.text, model_server_config_pb2.ModelServerConfig())
            return True
        if block.language == "python":
            return self.python(block.text)
        if block.language not in ("", "sh", "bash"):
            return False
        script = ""
        for one in commands(block.text):
            if re.match(IN_BASH, one):
                script += one + "\n"
            elif not matches(NOT_RUN, one) and not self.shell(one):
                return False
        return self.bash(script)

    def python(self, code):
        self.provide(code)
        exec(compile(cheaper(code, self.served), "page", "exec"), self.names)
        return True

    def shell(self, text):
        if matches(PARSED, text):
            parse(shlex.split(text, comments=True))
            return True
        if not text.startswith("keras-ssl "):
            return False
        line = cheaper(text, self.served).replace("\\\n", " ")
        _, *arguments = shlex.split(line, comments=True)
        if arguments[0] == "pretrain":
            arguments += shlex.split(PRETRAIN)
            if self.trained.copy(arguments):
                return True
        else:
            self.provide(line)
        code, _, errors = self.command(*arguments)
        assert code == 0, f"{text}: {errors}"
        if arguments[0] == "pretrain":
            self.trained.keep(arguments)
        return True

    def bash(self, script):
        if "curl " in script and not shutil.which("curl"):
            self.skipped.append(script)
            return True
        ran = subprocess.run(
            ["bash", "-ec", cheaper(script, self.served)], capture_output=True, text=True
        )
        assert ran.returncode == 0, f"{script}: {ran.stderr}"
        assert '"error":' not in ran.stdout, f"{script}: {ran.stdout}"
        if "ssl.config" in script:
            serving.server.configs.read("ssl.config", serving.server.configs.SSLConfig)
        return True

    def provide(self, text):
        """Creates the .keras files that a step reads, unless an earlier step has written them."""
        for file in re.findall(r"\b\w+_(?:photos|cifar10)\.keras", cheaper(text)):
            if not Path(file).exists():
                self.trained.provide(file)


def parse(words):
    """Fails unless the program knows the options of a command and takes their values."""
    program, *arguments = words
    if program == "python":
        parse_tool(*arguments)
        return
    name, *arguments = arguments
    subcommand = cli.cli.commands[name]
    with contextlib.suppress(SystemExit, click.exceptions.Exit):  # of --help
        if name in ("serve", "data-service"):
            module = importlib.import_module(f"keras_ssl.cli.{name.replace('-', '_')}")
            module.parser().parse_args(arguments)
        else:
            subcommand.make_context(name, arguments)


@pytest.mark.parametrize("name", PAGES)
def test_blocks_run(name, page):
    for block in blocks(PAGES[name].read_text()):
        try:
            done = page.run(block)
        except BaseException as error:
            error.add_note(f"{name}, line {block.line}")
            raise
        assert done, (
            f"{name}, line {block.line}: mark it as python, or list in tests/helpers/doc_pages.py why "
            f"it does not run:\n{block.text}"
        )
    if page.skipped:
        pytest.skip(f"{len(page.skipped)} of the blocks need curl, which is not installed")


def test_blocks_without_curl_are_reported(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    page = Page(command=None, served=(), trained=None)
    assert page.bash("printf x\ncurl localhost:8501\n")
    assert page.skipped == ["printf x\ncurl localhost:8501\n"]


def test_commands_in_the_text_are_known():
    """`keras-ssl evaluate` may name the subcommand only; if it has options, they exist."""
    for name, path in PAGES.items():
        for line, text in inline(path.read_text()):
            words = shlex.split(text)
            try:
                assert words[0] != "keras-ssl" or len(words) < 2 or words[1] in cli.cli.commands
                if len(words) > 2 or words[0] == "python":
                    parse(words)
            except BaseException as error:
                error.add_note(f"{name}, line {line}: {text}")
                raise
