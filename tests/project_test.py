"""The task table, the deployment files and the zoo match the documentation."""

import ast
import functools
import importlib
import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl import tasks
from keras_ssl.serving.server.servable import Servable
from keras_ssl.zoo import versions

ROOT = Path(__file__).parent.parent
MODELS = sorted(p.name for p in (ROOT / "saved_models").iterdir() if versions(p))
if "rotation_digits" in MODELS:  # what the quickstart writes here; git ignores it
    MODELS.remove("rotation_digits")


def test_every_task_has_a_row_and_every_row_a_task():
    classes = {
        item
        for module in pkgutil.walk_packages(tasks.__path__, "keras_ssl.tasks.")
        for item in vars(importlib.import_module(module.name)).values()
        if isinstance(item, type)
        and issubclass(item, kssl.PretextModel)
        and item.__module__ == module.name
    }
    assert classes == {row.task for row in tasks.TASKS}
    assert len({row.name for row in tasks.TASKS}) == len(tasks.TASKS)
    for row in tasks.TASKS:
        assert row.task.__module__.startswith(f"keras_ssl.tasks.{row.family}.")
        assert getattr(tasks, row.task.__name__) is row.task


def test_readme_lists_every_task():
    readme = (ROOT / "README.md").read_text()
    for row in tasks.TASKS:
        assert f"| `{row.name}` |" in readme
    assert f"| {len(tasks.TASKS)} tasks:" in readme


def test_tasks_import_no_other_task_and_nothing_of_another_family():
    for row in tasks.TASKS:
        source = Path(importlib.import_module(row.task.__module__).__file__).read_text()
        families = set(re.findall(r"from keras_ssl\.tasks\.(\w+)", source))
        assert families <= {row.family}
        # PCL is MoCo with prototypes.
        known = {row.name} if row.name != "pcl" else {"pcl", "moco"}
        others = "|".join(other.name for other in tasks.TASKS if other.name not in known)
        assert not re.search(rf"keras_ssl\.tasks\.\w+(\.| import .*\b)({others})\b", source)


def test_deployment_files_parse():
    config = text_format.Parse(
        (ROOT / "serving" / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    assert sorted(m.name for m in config.model_config_list.config) == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_models_of_the_zoo_serve_what_keras_computes(name):
    path = ROOT / "saved_models" / name
    encoder = kssl.load(path)
    pixels = np.random.default_rng(0).integers(0, 256, (5, *encoder.input_shape[1:]), np.uint8)
    servable = Servable(path / str(max(versions(path))))
    np.testing.assert_allclose(
        servable.run({"images": pixels})["features"], encoder(pixels), rtol=1e-5, atol=1e-5
    )
    servable.close()
    card = json.loads((path / str(max(versions(path))) / "assets.extra" / "card.json").read_text())
    assert {"task", "paper", "data", "views", "results", "license", "date"} <= set(card)


SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "keras_ssl").rglob("*.py")
}


def test_no_file_is_longer_than_300_lines():
    lengths = {name: len(path.read_text().splitlines()) for name, path in SOURCES.items()}
    assert {name: n for name, n in lengths.items() if n > 300} == {}


def test_no_function_is_longer_than_60_lines():
    """Counts lines without the docstring, whose length is not limited."""
    long = {}
    for name, path in SOURCES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    lines -= node.body[0].end_lineno - node.body[0].lineno + 1
                if lines > 60:
                    long[f"{name}.{node.name}"] = lines
    assert long == {}


def at_import(node):
    """The statements that run when a module is imported, also in `if`, `try` and `with`, not in functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def test_imports_at_import_time():
    source = """
try:
    import a
except ImportError:
    if True:
        import b
class C:
    import c
    def method(self):
        import d
"""
    found = [node for node in at_import(ast.parse(source)) if isinstance(node, ast.Import)]
    assert [node.names[0].name for node in found] == ["a", "b", "c"]


def imports(name, everything=False):
    """The modules of the package that a module imports, when it is imported or at any time."""
    tree = ast.parse(SOURCES[name].read_text())
    for node in ast.walk(tree) if everything else at_import(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("keras_ssl"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in SOURCES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)


def test_imports_have_no_circle():
    graph = {name: set(imports(name)) - {name} for name in SOURCES}
    # `from package import submodule` runs the package's __init__, which may import the module itself.
    while graph:
        leaves = [name for name, needed in graph.items() if not needed & graph.keys()]
        assert leaves, f"these import one another: {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_importing_the_client_does_not_import_the_server():
    imported, new = set(), {"keras_ssl.serving.client"}
    while new:
        imported |= new
        parents = {name.rpartition(".")[0] for name in new} & SOURCES.keys()
        new = {other for name in new for other in imports(name)} | parents
        new -= imported
    assert {"keras_ssl._public", "keras_ssl.serving.client.protocol"} <= imported
    assert [name for name in imported if name.startswith("keras_ssl.serving.server")] == []


def random_names(source):
    """The random numbers of TensorFlow and Keras in a source, which do not follow from an image's seed."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            if re.match(r"(tf|tensorflow|keras)\.(?!initializers\.).*random", name, re.IGNORECASE):
                yield name


@pytest.mark.parametrize(
    "line",
    [
        "tf.random.uniform([3])",
        "tf.random.stateless_normal([3], seed=[0, 1])",
        "tf.image.random_flip_left_right(x)",
        "tf.image.stateless_random_crop(x, size, seed)",
        "tf.raw_ops.StatelessRandomUniformV2(shape=shape)",
        "keras.random.normal([3])",
        "keras.layers.RandomFlip()",
        "from tensorflow import random",
    ],
)
def test_random_names(line):
    assert list(random_names(f"def pretext(batch, seed):\n    {line}\n    random.split(seed, 2)"))


def test_tasks_draw_random_numbers_by_seeds_of_images_only():
    """By `ops.random`, whose seeds tests/conformance_test.py checks; otherwise a resumed run would differ."""
    own = (
        "from keras_ssl.ops import random\nrandom.uniform(seed, 2)\nkssl.ops.random.split(seed, 2)"
    )
    assert list(random_names(own)) == []
    for name, path in SOURCES.items():
        if name.startswith(("keras_ssl.tasks.", "keras_ssl.ops.")):
            assert list(random_names(path.read_text())) == [], name


@pytest.mark.parametrize(
    ("room", "others"),
    [
        ("ops", ("data", "training", "tasks", "callbacks", "layers", "serving", "cli")),
        ("solvers", ("data", "tasks", "callbacks", "layers", "serving", "cli")),
        ("losses", ("data", "tasks", "callbacks", "serving", "cli")),
        ("data", ("serving", "tasks", "callbacks", "cli")),
        ("training", ("serving", "tasks", "callbacks", "cli")),
        ("serving", ("tasks", "callbacks", "training", "cli")),
        ("serving.client", ("serving.server", "ops", "data")),
    ],
)
def test_rooms_know_nothing_of_those_above_them(room, others):
    for name in SOURCES:
        if f"{name}.".startswith(f"keras_ssl.{room}."):
            for imported in imports(name, everything=True):
                assert not f"{imported}.".startswith(
                    tuple(f"keras_ssl.{other}." for other in others)
                ), name


def test_no_tool_imports_the_command():
    """Neither a tool nor a program in a string of it, which a subprocess would run."""
    for path in (ROOT / "tools").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = re.findall(r"keras_ssl\.cli", node.value)
            else:
                continue
            assert not [name for name in names if name.startswith("keras_ssl.cli")], path


def dotted(node):
    """Returns the names of `a.b.c`, or [] for attributes of anything but a name."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return [*before, node.attr] if before else []
    return [node.id] if isinstance(node, ast.Name) else []


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_tools_use_public_names_that_exist(path):
    """Most tools run only by hand, so a renamed function would stay unnoticed."""
    for node in ast.walk(ast.parse(path.read_text())):
        first, *names = dotted(node) or [""]
        if first == "kssl":
            functools.reduce(getattr, names, kssl)
