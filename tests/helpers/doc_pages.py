"""The pages of the documentation: their code blocks and commands, and why some of these do not run."""

import argparse
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
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

# Blocks and commands that do not run: (first characters, reason).
NO_COMMAND = (
    ("images -> pretext labels", "a diagram"),
    (":tensorflow:cc:", "a query: tests/serving/deployment/monitoring_test.py parses it"),
)

NOT_RUN = (
    (r"python3 -m venv", "installs the package: .ci/run runs it, as docs_text_test.py checks"),
    (r"pytest |ruff ", "of a new task: .ci/run runs both for all"),
    (r"(cd serving && )?docker ", "needs the Docker daemon and images from the internet"),
    (r"for image in .*docker-compose", "asks a registry: serving/deployment/consistency_test.py"),
    (r"kubectl |for pod in \$\(kubectl", "needs a Kubernetes cluster"),
    (r"ray (start|stop)", "several machines: tests/tables/ray_engine_test.py"),
    (r"(DATA=\S+ OUT=\S+ )?sbatch |for .*; do sbatch", "needs a Slurm cluster"),
    (r"export TF_CONFIG=", "describes two machines"),
)

# Commands of which only the arguments are parsed: (first characters, reason).
PARSED = (
    (r"keras-ssl serve", "serves until it is stopped: tests/serving"),
    (r"keras-ssl explore", "serves until it is stopped: tests/tables/explore_test.py"),
    (r"keras-ssl .*--engine ray", "starts a Ray cluster: tests/tables/ray_engine_test.py"),
    (r"keras-ssl data-service", "serves until it is stopped: tests/data/service_test.py"),
    (
        r"keras-ssl .*--strategy multi_worker",
        "several machines: tests/training/multi_worker_test.py",
    ),
    (r"keras-ssl .*--service", "needs a data service: tests/data/service_test.py"),
    (r"python tools/", "takes minutes, and data that is not in the repository"),
)


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


class ParsedArguments(Exception):
    """Raised after a tool has parsed its arguments, instead of running it."""


def parse_tool(tool, *arguments):
    """Fails unless a tool knows the options and takes their values; it does not run."""
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
