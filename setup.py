"""Builds the package that `pyproject.toml` describes, with its page on a package index.

An index shows README.md, but not the other files of the repository: links and pictures
with a relative address would be broken there, so they are left out.
"""

import pathlib
import re

from setuptools import setup

RELATIVE = r"(?![a-z]+:)[^)\s]*(?:\s[^)]*)?"  # a Markdown link's target, and its title
PICTURES = rf"!\[[^\]]*\]\({RELATIVE}\)\n?"
TAGS = r"""<(img|source)\b[^>]*\b(?:src|srcset)=["'](?![a-z]+:)[^>]*>\n?"""
LINKS = rf"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\({RELATIVE}\)"
ANCHORS = r"""<a\b[^>]*\bhref=["'](?![a-z]+:)[^>]*>(.*?)</a>"""


def long_description() -> str:
    """Return README.md without links and pictures that lead into the repository."""
    readme = pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    parts = re.split(r"(?ms)(^```.*?^```$)", readme)  # every second one is code
    for i in range(0, len(parts), 2):
        text = re.sub(TAGS, "", re.sub(PICTURES, "", parts[i]))
        parts[i] = re.sub(ANCHORS, r"\1", re.sub(LINKS, r"\1", text), flags=re.S)
    return "".join(parts)


setup(
    long_description=long_description(), long_description_content_type="text/markdown"
)
