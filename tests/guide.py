"""The examples of the pages in docs/, by page and section.

Blocks marked `python` are ours and run; those of other libraries are marked `py`.
"""

import pathlib
import re
import shlex

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PATH = DOCS / "migration.md"


def sections(page=PATH.name):
    """Title of each section -> its text."""
    _, *parts = re.split(r"^## (.+)$", (DOCS / page).read_text(), flags=re.M)
    return dict(zip(parts[::2], parts[1::2]))


def run(title, names, page=PATH.name):
    """Runs the blocks of a section, one after the other, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", sections(page)[title], re.S)
    assert blocks, title
    for block in blocks:
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
    blocks = re.findall(r"```bash\n(.*?)```", sections(page)[title], re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("tf-dlrm ")]
