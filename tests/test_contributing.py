"""CONTRIBUTING.md is true: its map names what the packages hold, and nothing else."""

import ast
import pathlib
import re

import pytest
import test_architecture

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = re.search(r"(?s)## The map\n.*?```\n(.*?)```", TEXT).group(1)
PACKAGES = ("tf_dlrm", "pipelines")
NAME = re.compile(r"\b(?:\w+/)*(?:\w+\.py\b|\w+/(?=[\s;:,.()]|$))")


def parts(text, indent):
    """The pieces of a text that start at a line of this indent, and go on below it."""
    return re.split(rf"(?m)^(?=\s{{{indent}}}\S)", text)


def section(folder):
    """What the map says of a folder of the repository, without the folder itself."""
    (text,) = [part for part in parts(MAP, 0) if part.startswith(f"{folder}/")]
    return text.removeprefix(f"{folder}/")


def places(folder, entry):
    """Folders that an entry of the map speaks of: those it starts with, or the top."""
    heads = re.match(r"\s*((?:[\w./]+ )*[\w./]+)", entry).group(1).split(" ")
    inner = [ROOT / folder / head for head in heads if head.endswith("/")]
    return [place for place in inner if place.is_dir()]


def entries():
    for folder in PACKAGES:
        for entry in parts(section(folder), 2):
            if NAME.search(entry):
                yield pytest.param(folder, entry, id=entry.split()[0])


@pytest.mark.parametrize("folder, entry", list(entries()))
def test_what_the_map_names_exists(folder, entry):
    top = ROOT / folder
    found = places(folder, entry)
    for name in NAME.findall(entry):
        inside = (path for place in found for path in place.rglob(name.rstrip("/")))
        assert (top / name).exists() or any(inside), f"{folder}: there is no {name}"


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_map_names_every_subpackage_and_top_module(folder):
    named = {name.rstrip("/").split("/")[-1] for name in NAME.findall(section(folder))}
    top = ROOT / folder
    rooms = {path.parent.name for path in top.glob("*/**/__init__.py")}
    modules = {path.name for path in top.glob("*.py")} - {"__init__.py"}
    missing = sorted((rooms | modules) - named)
    assert not missing, "put them on the map in CONTRIBUTING.md"


def test_files_named_in_the_text_exist():
    text = TEXT.replace(MAP, "")
    for name in re.findall(r"`([\w/]+\.py)`", text):
        folders = (*PACKAGES, "tests", "docs", "benchmarks")
        found = [p for f in folders for p in (ROOT / f).rglob(name.split("/")[-1])]
        assert any(p.as_posix().endswith(f"/{name}") for p in found), name


def test_the_text_names_the_adapters_to_private_modules():
    (sentence,) = re.findall(r"Private\s+modules\s+are[^;]*", TEXT)
    named = re.findall(r"`([\w/]+\.py)`", sentence)
    adapters = {p.relative_to(ROOT).as_posix() for p in test_architecture.ADAPTERS}
    assert len(named) == len(adapters)
    assert all(any(path.endswith(f"/{name}") for path in adapters) for name in named)


def test_of_criteo_the_library_knows_what_the_map_says():
    """Columns' names, in two modules: no format and no rule about its values."""
    knowing = set()
    for path in (ROOT / "tf_dlrm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, key, "") for key in ("id", "name", "attr", "arg")]
            if any("criteo" in str(name).lower() for name in names):
                knowing.add(path.relative_to(ROOT / "tf_dlrm").as_posix())
    assert knowing == {"features.py", "interop/facebookresearch.py"}
    assert "FeatureSpec.criteo" in section("tf_dlrm")
