"""The examples of the pages in docs/, by page and section.

Blocks marked `python` run; those of other libraries are marked `py`.
"""

import pathlib
import re
import shlex

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def read(page):
    """Return the text of a page."""
    return (DOCS / page).read_text()


def sections(page):
    """Return the text of each section by its title."""
    _, *parts = re.split(r"^## (.+)$", read(page), flags=re.M)
    return dict(zip(parts[::2], parts[1::2]))


def blocks(page):
    """Return the Python blocks of a page."""
    return _blocks(read(page))


def _blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(title, names, page):
    """Run the blocks of a section, one after the other, in one namespace."""
    return _run(sections(page)[title], names, f"{page}: {title}")


def run_page(page, names):
    """Run all blocks of a page in one namespace."""
    return _run(read(page), names, page)


def _run(text, names, place):
    found = _blocks(text)
    assert found, place
    for block in found:
        exec(compile(block, place, "exec"), names)
    return names


def commands(title, page):
    """Return the `tf-dlrm` command lines of a section, as lists of arguments."""
    return _commands(sections(page)[title])


def all_commands(page):
    """Return the `tf-dlrm` command lines of a page."""
    return _commands(read(page))


def _commands(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("tf-dlrm ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]
