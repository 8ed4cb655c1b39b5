"""Hooks of MkDocs: links to files outside docs/, as on GitHub, and marked short names.

The site links to the repository if `[project.urls]` in pyproject.toml has its address.

A link such as `../../benchmarks/results/kaggle_sgd/chart.png` works in the repository
and in the site, which gets a copy of the file.
"""

import os
import pathlib
import posixpath
import re
import tomllib

from mkdocs.structure.files import File

_LINK = re.compile(r"(?<=\]\()(\.\./[^)\s#]+)")
_NAME = re.compile(r"<code>([^\s<>&]{1,28})</code>")


def _target(page: str, link: str) -> str | None:
    """Return the path of a linked file from the root, if it lies outside of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith(("docs/", "..")) else path


def on_config(config):
    text = pathlib.Path(config.config_file_path).with_name("pyproject.toml").read_text()
    address = tomllib.loads(text)["project"]["urls"].get("Repository")
    if address:
        config.repo_url, config.repo_name = address, config.site_name
    return config


def on_files(files, config):
    root = pathlib.Path(config.config_file_path).parent
    for page in files.documentation_pages():
        for link in _LINK.findall(page.content_string):
            path = _target(page.src_uri, link)
            if path and (root / path).is_file() and not path.endswith(".md"):
                if not files.get_file_from_path(path):
                    files.append(
                        File.generated(config, path, abs_src_path=str(root / path))
                    )
    return files


def on_page_markdown(markdown, page, config, files):
    if not re.search(r"^## ", markdown, re.M) and ":::" not in markdown:
        page.meta.setdefault("hide", ["toc"])  # room for a wide table

    def rewrite(found):
        path = _target(page.file.src_uri, found[0])
        if path is None or not files.get_file_from_path(path):
            return found[0]
        return os.path.relpath(path, posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(rewrite, markdown)


def on_page_content(html, page, config, files):
    """Mark short names, which the style sheet keeps on one line."""
    return _NAME.sub(r'<code class="name">\1</code>', html)
