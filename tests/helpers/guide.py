"""The examples of the pages in docs/, by page and section.

Blocks marked `python` are ours and run; those of other libraries are marked `py`.
"""

import pathlib
import re
import shlex

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PATH = DOCS / "migration.md"


def sections(page=PATH.name):
    """Title of each section -> its text."""
    _, *parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.M)
    return dict(zip(parts[::2], parts[1::2]))


def blocks(page):
    """Our Python on a page."""
    return _blocks((DOCS / page).read_text())


def _blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def run(title, names, page=PATH.name):
    """Runs the blocks of a section, one after the other, in one namespace."""
    found = _blocks(sections(page)[title])
    assert found, title
    for block in found:
        exec(compile(block, f"{page}: {title}", "exec"), names)
    return names


def run_page(page, names):
    """Runs the blocks of all sections that have some."""
    for title, text in sections(page).items():
        if "```python\n" in text:
            run(title, names, page)
    return names


def commands(title, page):
    """The `tf-dlrm` command lines of a section, as lists of arguments."""
    return _commands(sections(page)[title])


def all_commands(page):
    """The `tf-dlrm` command lines of a page."""
    return _commands((DOCS / page).read_text())


def _commands(text):
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines = [line for line in lines if line.startswith("tf-dlrm ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]
