"""docs/api is what the docstrings say now, and every public name has one."""

import dataclasses
import importlib
import importlib.util
import inspect
import pathlib

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location("make_api", DOCS / "make_api.py")
make_api = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make_api)
HOW = "run python docs/make_api.py"


@pytest.mark.parametrize("name", make_api.MODULES)
def test_the_page_is_up_to_date(name):
    path = make_api.FOLDER / f"{name}.md"
    assert path.exists(), HOW
    assert path.read_text(encoding="utf-8") == make_api.make_page(name), HOW


def test_there_are_no_other_pages_and_the_index_has_all():
    pages = {path.name for path in make_api.FOLDER.iterdir()}
    assert pages == {f"{name}.md" for name in make_api.MODULES}, HOW
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert index.endswith(make_api.make_index() + "\n"), HOW


@pytest.mark.parametrize("name", make_api.MODULES)
def test_public_names_have_a_docstring(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if callable(value):
            assert make_api.docstring(value), f"{name}.{public}"
        elif inspect.ismodule(value):
            assert value.__doc__, f"{name}.{public}"


class Sample:
    """Does a thing.

    As `a = b`.

    Args:
        first: What it is,
            in two lines.
        **rest: The rest.

    Raises:
        ValueError, TypeError: If it is wrong.

    Example:

    >>> 1 + 1
    2
    """

    def __init__(self, first: "list[int]", second="two", *, third=3.0, **rest):
        self.first = (first, second, third, rest)


def test_a_docstring_becomes_markdown():
    assert make_api.to_markdown(make_api.docstring(Sample)).split("\n") == [
        "Does a thing.",
        "",
        "As `a = b`.",
        "",
        "**Args**",
        "",
        "- `first`: What it is,",
        "  in two lines.",
        "- `**rest`: The rest.",
        "",
        "**Raises**",
        "",
        "- `ValueError, TypeError`: If it is wrong.",
        "",
        "**Example**",
        "",
        "```pycon",
        ">>> 1 + 1",
        "2",
        "```",
    ]


def test_a_signature_is_written_as_in_the_source(monkeypatch):
    monkeypatch.setattr(make_api, "_own_bases", lambda cls: [cls])
    assert make_api.signature("Sample", Sample) == (
        'Sample(first: list[int], second="two", *, third=3.0, **rest)'
    )


def test_what_python_wrote_is_no_docstring():
    made = dataclasses.make_dataclass("Made", ["a"])
    assert make_api.docstring(made) == ""

    class Inherits(Sample):
        pass

    assert make_api.docstring(Inherits) == ""
