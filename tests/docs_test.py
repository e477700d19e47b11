"""Every code block and command of the documentation runs here, or is listed with the reason why not."""

import argparse
import contextlib
import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
import cv2
import keras
import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image, ImageDraw
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl import cli, serving
from keras_ssl.data.columns import random_access
from keras_ssl.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for folder in (".", "docs", "serving", "deploy", "saved_models", "tools")
    for path in sorted((ROOT / folder).glob("*.md"))
    if path.name != "CHANGELOG.md"
}

# Substitutions that make a page run here within seconds: (text of the page, replacement).
CHEAPER = (
    (r"\b96\b", "32"),
    (r"\bwidth=\d+", "width=2, blocks=(1,)"),
    (r"\bepochs([ =])\d+", r"epochs\g<1>1"),
    (r"\bbatch_size=\d+|(?<=dataset\(images, )256", "8"),
    (r"\bnum_clusters=\d+", "num_clusters=3"),
    (r'"quadratic", \d+', '"quadratic", 2'),
    (r"\bpairs=\d+", "pairs=1"),
    (r"\bsteps_per_execution=\d+", "steps_per_execution=1"),
    (r"ResNet50\(", "MobileNetV2(alpha=0.35, "),
    # Needs TensorFlow 2.15, where tools/check_addons.sh fine-tunes by LAMB.
    (r"import tensorflow_addons as tfa.*", ""),
    (r"\btfa\.optimizers\.LAMB", "tf.compat.v1.train.GradientDescentOptimizer"),
    (r"\bmy_task", "rotation"),  # the task that the reader of docs/adding_a_task.md writes
)
PRETRAIN = "--epochs 1 --width 2 --blocks 1 --batch-size 8"  # appended: the last value counts

# Blocks and commands that do not run: (first characters, reason).
NO_COMMAND = (("images -> pretext labels", "a diagram"),)
NOT_RUN = (
    (r"python3 -m venv", "installs the package: .ci/run runs it, as a test below checks"),
    (r"(cd serving && )?docker ", "needs the Docker daemon and images from the internet"),
    (r"kubectl |for pod in \$\(kubectl", "needs a Kubernetes cluster"),
    (r"(DATA=\S+ OUT=\S+ )?sbatch |for .*; do sbatch", "needs a Slurm cluster"),
    (r"export TF_CONFIG=", "describes two machines"),
)
# Commands of which only the arguments are parsed: (first characters, reason).
PARSED = (
    (r"keras-ssl serve", "serves until it is stopped: tests/serving"),
    (r"keras-ssl data-service", "serves until it is stopped: tests/data/service_test.py"),
    (
        r"keras-ssl .*--strategy multi_worker",
        "several machines: tests/training/multi_worker_test.py",
    ),
    (r"keras-ssl .*--service", "needs a data service: tests/data/service_test.py"),
    (r"python tools/", "takes minutes, and data that is not in the repository"),
)
IN_BASH = r"curl |mv |pem\(\)|printf "  # run by bash, with a server on the ports that they name


class Block(NamedTuple):
    line: int  # number of its first line
    end: int  # number of its last line
    language: str  # of a fence; "" for an indented block
    text: str


def blocks(markdown):
    """The fenced and the indented code blocks of a page, in order."""
    found, lines, i = [], markdown.splitlines(), 0
    while i < len(lines):
        start, fence, code = i, re.match(r"( *)```(\w*)", lines[i]), []
        if fence:
            i = (
                start
                + 1
                + next(n for n, line in enumerate(lines[start + 1 :]) if line.strip() == "```")
            )
            code, language = lines[start + 1 : i], fence[2] or "text"
        elif lines[i].startswith("    ") and not (start and lines[start - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            code, language = lines[start:i], ""
            i -= 1
        i += 1
        if code:
            indent = min(len(line) - len(line.lstrip()) for line in code if line.strip())
            text = "\n".join(line[indent:] for line in code).strip("\n") + "\n"
            found.append(Block(start + 1, i, language, text))
    return found


def test_blocks_that_follow_each_other():
    page = "text\n\n    one\n\n```python\ntwo\n```\n\n    three"
    assert [block.text for block in blocks(page)] == ["one\n", "two\n", "three\n"]


def commands(text):
    """The commands of a shell block: lines are joined until bash accepts them as complete."""
    found, part = [], ""
    for line in text.splitlines(keepends=True):
        part += line
        checked = subprocess.run(["bash", "-n"], input=part, capture_output=True, text=True)
        if checked.returncode or checked.stderr or part.endswith("\\\n"):
            continue
        if not re.fullmatch(r"\s*(#.*)?\s*", part):
            found.append(part.strip())
        part = ""
    assert not part, f"bash cannot parse {part!r}"
    return found


def inline(markdown):
    """The `keras-ssl ...` and `python tools/...` in the running text, with the line of each."""
    for match in re.finditer(r"`((?:keras-ssl|python tools/)[^`]*)`", prose(markdown)):
        yield markdown.count("\n", 0, match.start()) + 1, " ".join(match[1].split())


def prose(markdown):
    """The page with its code blocks blanked, so that line numbers stay."""
    lines = markdown.splitlines()
    for block in blocks(markdown):
        lines[block.line - 1 : block.end] = [""] * (block.end - block.line + 1)
    return "\n".join(lines)


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
def page(command, served, trained, exported, tmp_path):
    """Runs the steps of a page, in one folder and one namespace."""
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


class ParsedArguments(Exception):
    """Raised after a tool has parsed its arguments, instead of running it."""


def parse(words):
    """Fails unless the program knows the options of a command and takes their values."""
    program, *arguments = words
    if program == "python":
        tool, *arguments = arguments
        original = argparse.ArgumentParser.parse_args

        def only_parse(self, *_):
            original(self, arguments)
            raise ParsedArguments

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
            patch.setattr(sys, "argv", [tool, *arguments])
            patch.syspath_prepend(ROOT / "tools")
            environment = dict(os.environ)
            with pytest.raises(ParsedArguments):
                runpy.run_path(str(ROOT / tool), run_name="__main__")
            os.environ.clear()
            os.environ.update(environment)
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
            f"{name}, line {block.line}: mark it as python, or list in tests/docs_test.py why it does "
            f"not run:\n{block.text}"
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


def test_reasons_are_needed():
    """An unused entry would also match a new block with the same first characters."""
    texts = [block.text for path in PAGES.values() for block in blocks(path.read_text())]
    texts += [one for text in texts if "\n" in text for one in _commands_or_none(text)]
    texts += [text for path in PAGES.values() for _, text in inline(path.read_text())]
    for start, _ in NO_COMMAND:
        assert any(text.startswith(start) for text in texts), start
    for pattern, _ in (*NOT_RUN, *PARSED):
        assert any(re.match(pattern, text) for text in texts), pattern
    for pattern, _ in CHEAPER:
        assert any(re.search(pattern, text) for text in texts), pattern


def test_reasons_name_tests_that_exist():
    for _, why in (*NO_COMMAND, *NOT_RUN, *PARSED):
        for path in re.findall(r"tests/[\w/.]+", why):
            assert (ROOT / path).exists(), why


def _commands_or_none(text):
    try:
        return commands(text)
    except AssertionError:  # Python
        return []


def test_the_two_commands_are_what_ci_runs():
    script = (ROOT / ".ci" / "run").read_text().replace(" --quiet", "")
    found = [b.text for b in blocks(PAGES["README.md"].read_text()) if "python3 -m venv" in b.text]
    assert [text.split()[-1] for text in found] == ["quickstart", ".venv/bin/pytest"]
    for part in " && ".join(found).split(" && "):
        assert part.strip() in script


def test_links_lead_somewhere():
    for name, path in PAGES.items():
        for target, anchor in re.findall(
            r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose(path.read_text())
        ):
            if target.startswith("http"):
                continue
            file = path.parent / target if target else path
            assert file.exists(), f"{name}: {target}"
            assert not anchor or anchor in anchors(file), f"{name}: {target}#{anchor}"


def anchors(path):
    """Returns the anchors of a page's headings, as GitHub generates them."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE):
        slug = re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        number = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{number}" if number else slug)
    return found


# ---- The tasks of the tutorial train.


@pytest.fixture(scope="module")
def tutorial():
    names = {}
    for block in blocks(PAGES["docs/adding_a_task.md"].read_text()):
        if block.language == "python":
            exec(compile(block.text, "adding_a_task.md", "exec"), names)
    return names


@pytest.mark.parametrize("name", ["TwoRotations", "MomentumContrast", "Order"])
def test_the_tasks_of_the_tutorial_train_and_are_saved(tutorial, name, noise, tmp_path):
    images = {
        "image": noise,
        "id": np.arange(40, dtype=np.int64),
        "frames": np.stack([noise] * 3, 1),
    }
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1))
    task = tutorial[name](encoder)
    task.compile("adam")
    data = task.dataset(random_access(images), 16)
    assert np.isfinite(task.fit(data, verbose=0).history["loss"]).all()
    assert len(task.preview(*next(data.as_numpy_iterator()))) == 16
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
