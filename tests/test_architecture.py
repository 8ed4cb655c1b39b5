"""Rooms and doors: imports point down, private modules stay behind the adapter, the
wheel holds the two packages, and every public docstring's example runs."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys
import zipfile

import pytest

import pipelines
import tf_dlrm

ROOT = pathlib.Path(__file__).parents[1]
# From the bottom up; a module may import its own rank and what is below.
RANKS = [
    {"version", "calibration", "runtime"},
    {"features"},
    {"optimizers"},
    {"embedding"},
    {"inputs", "layers", "sharding"},
    {"metrics", "training"},
    {"summary", "model"},
    {"callbacks", "serving", "interop"},
]
ADAPTERS = {
    ROOT / "tf_dlrm" / "runtime" / "gradients.py",
    ROOT / "tf_dlrm" / "training" / "keras_hooks.py",
}
SIBLINGS_APART = {
    ("layers", "sharding"),
    ("sharding", "layers"),
    ("metrics", "training"),
}


def sources(package):
    return sorted((ROOT / package).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(room):
    return next((i for i, rooms in enumerate(RANKS) if room in rooms), None)


@pytest.mark.parametrize("path", sources("tf_dlrm"), ids=lambda p: p.stem)
def test_imports_of_the_library_point_down(path):
    room = path.relative_to(ROOT / "tf_dlrm").parts[0].removesuffix(".py")
    for name in imports(path):
        assert not name.startswith("pipelines"), f"{path} imports {name}"
        if not name.startswith("tf_dlrm.") or room == "__init__":
            continue
        target = name.split(".")[1]
        if rank(target) is None:
            continue  # a name out of a module that was checked itself
        assert rank(room) is not None, f"{room} has no rank: put it on the map"
        assert rank(target) <= rank(room), f"{path} imports up: {name}"
        assert (room, target) not in SIBLINGS_APART, f"{path} imports {name}"


@pytest.mark.parametrize("package", ["tf_dlrm", "pipelines"])
def test_private_modules_stay_behind_the_adapter(package):
    for path in sources(package):
        for name in imports(path):
            private = re.match(r"(tensorflow\.python|keras\.src)\b", name)
            assert not private or path in ADAPTERS, f"{path} imports {name}"


def test_keras_still_has_what_the_adapter_leans_on():
    """Fails when Keras renames its hook: look at tf_dlrm/training/keras_hooks.py."""
    import keras

    from tf_dlrm.training import keras_hooks

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    assert isinstance(keras_hooks.loss_tracker(model), keras.metrics.Mean)
    assert keras_hooks.loss_tracker(model).name == "loss"


@pytest.mark.integration
def test_the_wheel_holds_exactly_the_two_packages(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
    options = ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, *options], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "tf_dlrm",
        "pipelines",
    }
    expected = {str(p.relative_to(ROOT)) for p in sources("tf_dlrm")}
    expected |= {str(p.relative_to(ROOT)) for p in sources("pipelines")}
    expected |= {"tf_dlrm/py.typed"}
    assert expected <= set(names)


def public_functions(node):
    """Yield the public functions of a module or class, with whether it is a class."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child)
        elif isinstance(child, ast.FunctionDef):
            if not child.name.startswith("_") or child.name in ("__init__", "__call__"):
                yield child, isinstance(node, ast.ClassDef)


@pytest.mark.parametrize("path", sources("tf_dlrm"), ids=lambda p: p.stem)
def test_public_functions_are_typed(path):
    for function, is_method in public_functions(ast.parse(path.read_text())):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [each for each in (arguments.vararg, arguments.kwarg) if each]
        untyped = [each.arg for each in named if each.annotation is None]
        if is_method and untyped[:1] in (["self"], ["cls"]):
            untyped = untyped[1:]
        where = f"{path}:{function.lineno}: {function.name}"
        assert not untyped, f"{where} has parameters without a type: {untyped}"
        assert function.returns is not None, f"{where} has no return type"


@pytest.mark.parametrize("path", sources("tf_dlrm"), ids=lambda p: p.stem)
def test_docstrings_start_with_a_verb_or_a_noun(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            where = f"{path}: {getattr(node, 'name', 'the module')}: {text[:80]}"
            assert not re.match(r"(As|How|What|Where|Whether|Who)\b", text), where
            # A docstring repeats the half sentence that it leans on.
            assert "As of `" not in text, where


def modules():
    for package in (tf_dlrm, pipelines):
        yield package.__name__
        prefix = f"{package.__name__}."
        for info in pkgutil.walk_packages(package.__path__, prefix):
            yield info.name


@pytest.mark.parametrize("name", sorted(modules()))
def test_examples_run(name):
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(module, optionflags=flags)
    assert failed == 0


@pytest.mark.parametrize("package", ["tf_dlrm", "pipelines"])
def test_files_say_what_they_are_and_stay_small(package):
    for path in sources(package):
        text = path.read_text()
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert text.count("\n") <= 400, f"{path}: is there a second idea in it?"
