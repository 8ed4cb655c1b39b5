"""Every public name is on one page of docs/reference/api, and has a docstring."""

import collections
import importlib
import importlib.util
import inspect
import re

import pytest
from helpers import guide

PACKAGES = ("tf_dlrm", "pipelines")
PAGES = sorted((guide.DOCS / "reference/api").glob("*.md"))


def public_modules():
    """Return the packages, and the modules that `__all__` of a public one lists."""
    names = list(PACKAGES)
    for name in names:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            if inspect.ismodule(getattr(module, public)):
                names.append(f"{name}.{public}")
    return names


MODULES = public_modules()


def directives():
    """Return how often each name has a directive, on all pages."""
    text = "\n".join(page.read_text() for page in PAGES)
    return collections.Counter(re.findall(r"^::: (\S+)$", text, re.M))


def test_every_public_name_is_on_exactly_one_page():
    expected = set(MODULES)
    for name in MODULES:
        module = importlib.import_module(name)
        expected |= {f"{name}.{public}" for public in getattr(module, "__all__", ())}
    # In the source, this name is first of all that of the file.
    expected.remove("tf_dlrm.training.warm_start")
    expected.add("tf_dlrm.training.warm_start.warm_start")
    assert directives() == collections.Counter(expected)


def test_every_page_is_that_of_a_module_and_in_the_index():
    index = guide.read("reference/api/index.md")
    for page in PAGES:
        if page.name != "index.md":
            assert page.stem in MODULES
            assert page.read_text().startswith(f"# {page.stem}\n\n::: {page.stem}\n")
            assert f"]({page.name})" in index


@pytest.mark.parametrize("name", MODULES)
def test_public_names_have_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value):
            said = vars(value).get("__doc__") or ""
            assert said and not said.startswith(f"{value.__name__}("), public
        elif callable(value):
            assert value.__doc__, public


def docstrings_extension():
    pytest.importorskip("griffe", reason="takes mkdocstrings")
    path = guide.DOCS / "site/docstrings.py"
    spec = importlib.util.spec_from_file_location("docstrings", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sections_of_keras_become_those_of_google():
    text = """Does a thing.

Args:
    first: It.

Call arguments:
    x: `(B, 1)`.

Returns:
    A shape: `(B, 2)`.

Example:

>>> 1 + 1
2

Reference:
    A paper,
    section 2.
"""
    assert docstrings_extension().to_google(text).split("\n") == [
        "Does a thing.",
        "",
        "Args:",
        "    first: It.",
        "",
        "Other Parameters: Call arguments:",
        "    x: `(B, 1)`.",
        "",
        "**Returns:** A shape: `(B, 2)`.",
        "",
        "Examples: Example:",
        "    >>> 1 + 1",
        "    2",
        "",
        "**Reference:** A paper,",
        "section 2.",
    ]
