"""Rooms and doors: imports point down, private modules stay behind the adapters, and
every public docstring's example runs."""

import ast
import doctest
import importlib
import json
import pathlib
import pkgutil
import re

import pytest

import pipelines
import tf_dlrm

ROOT = pathlib.Path(__file__).parents[1]
# From the bottom up; a module may import its own rank and what is below.
RANKS = [
    {"version", "calibration", "runtime"},
    {"features", "growing_ids"},
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
    ROOT / "pipelines" / "benchmark" / "trace_format.py",
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
        constants = (
            getattr(n, "value", 0) for n in ast.walk(ast.parse(path.read_text()))
        )
        names = [text for text in constants if isinstance(text, str)]
        for name in [*imports(path), *names]:
            private = re.match(
                r"(tensorflow\.(python|tsl|core)|keras\.src|tensorboard\.compat)\.",
                name,
            )
            assert not private or path in ADAPTERS, f"{path} imports {name}"


def test_keras_still_has_what_the_adapter_leans_on():
    """Fails when Keras renames its hook: look at tf_dlrm/training/keras_hooks.py."""
    import keras

    from tf_dlrm.training import keras_hooks

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    assert isinstance(keras_hooks.loss_tracker(model), keras.metrics.Mean)
    assert keras_hooks.loss_tracker(model).name == "loss"


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


def packages_of(top):
    """The public names of each package: what its `__init__` lists, nothing else."""
    for path in sources(top):
        if path.name == "__init__.py":
            name = ".".join(path.relative_to(ROOT).parent.parts)
            yield name, getattr(importlib.import_module(name), "__all__", ())


def private_uses(code, top):
    """Names of a package that no `__init__` of it lists, as `code` uses them."""
    public = dict(packages_of(top))
    for node in ast.walk(ast.parse(code)):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name not in public]
        elif isinstance(node, ast.ImportFrom) and node.module in public:
            listed = public[node.module]
            names = [a.name for a in node.names if a.name not in listed]
            names = [f"{node.module}.{name}" for name in names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute):
            package, _, name = ast.unparse(node).rpartition(".")
            if name not in public.get(package, [name]) and not name.startswith("__"):
                names = [f"{package}.{name}"]
        yield from (name for name in names if name.split(".")[0] == top)


def code_of(path):
    """The Python in a file: a module, a notebook's cells, a page's blocks."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        codes = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        codes = [re.sub(r"(?m)^( *)[%!].*$", r"\1pass", code) for code in codes]
    elif path.suffix == ".md":
        codes = re.findall(r"```python\n(.*?)```", text, re.S)
        codes = [re.sub(r"(?m)^(>>>|\.\.\.) ?", "", code) for code in codes]
    else:
        codes = [text]
    return codes


def users(*patterns):
    paths = {path for pattern in patterns for path in ROOT.glob(pattern)}
    return sorted(path for path in paths if "api" not in path.parts)


@pytest.mark.parametrize(
    "top, path",
    [
        *(
            ("tf_dlrm", path)
            for path in users(
                "pipelines/**/*.py",
                "benchmarks/**/*.py",
                "examples/*.py",
                "**/*.md",
                "notebooks/*.ipynb",
            )
        ),
        *(("pipelines", path) for path in users("examples/*.py", "notebooks/*.ipynb")),
    ],
    ids=lambda value: str(value).removeprefix(f"{ROOT}/"),
)
def test_public_means_public(top, path):
    for code in code_of(path):
        used = list(private_uses(code, top))
        assert not used, f"{path} uses names that no __init__ lists: {used}"


@pytest.mark.parametrize(
    "code",
    [
        "import tf_dlrm.training.step",
        "from tf_dlrm.training.step import TrainStep",
        "from tf_dlrm import inputs",
        "import tf_dlrm; tf_dlrm.training.keras_hooks.build_metrics",
    ],
)
def test_private_names_are_noticed(code):
    assert list(private_uses(code, "tf_dlrm"))


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


COMMANDS = ("commands", "cli.py", "demonstration.py", "named")


@pytest.mark.parametrize("path", sources("pipelines"), ids=lambda p: p.stem)
def test_only_commands_speak_of_flags_and_docstrings_do_not_ask(path):
    tree = ast.parse(path.read_text())
    statements = [n.value for n in ast.walk(tree) if isinstance(n, ast.Expr)]
    texts = {n for n in statements if isinstance(getattr(n, "value", 0), str)}
    for text in texts:
        start = re.match(r"(What|Whether|Where|How|Which|As of)\b", text.value)
        assert not start, f"{path}:{text.lineno}: {text.value[:60]}"
    if set(COMMANDS) & set(path.relative_to(ROOT).parts):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node not in texts:
            words = re.sub(r"tf-dlrm [^,;`]*", "", str(node.value))
            flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", words)
            assert not flags, f"{path}:{node.lineno} speaks of {flags} to a function"
