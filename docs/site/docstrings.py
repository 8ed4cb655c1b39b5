"""A griffe extension: docstrings in Keras' form, and names imported when first used.

The API pages are made from the source without importing it. griffe knows Google's
sections; this turns Keras' "Call arguments:", "Example:" and "Reference:" into those,
and finds the names that a package lists in `_MEMBERS`.
"""

import ast
import re
import textwrap

import griffe

_SECTION = re.compile(r"^(Call arguments|Examples?|References?|Returns):\n+", re.M)
_NEXT = re.compile(r"^[A-Z][A-Za-z ]+:$", re.M)


def to_google(docstring: str, is_typed: bool = False) -> str:
    """Return a docstring with the sections that Google's style knows.

    Args:
        docstring: The docstring, in Keras' form.
        is_typed: Whether a type hint says what is returned. A layer's docstring tells
            what its call returns, and has none.
    """
    parts = []
    while found := _SECTION.search(docstring):
        parts.append(docstring[: found.start()])
        rest = docstring[found.end() :]
        following = _NEXT.search(rest)
        end = following.start() if following else len(rest)
        body, docstring = textwrap.dedent(rest[:end]).strip("\n"), rest[end:]
        if found[1] == "Returns" and is_typed:
            parts.append(f"Returns:\n{_indent(body)}\n\n")
        else:
            parts.append(_section(found[1].rstrip("s"), body) + "\n\n")
    return "".join([*parts, docstring]).rstrip()


def _section(title: str, body: str) -> str:
    if title in ("Reference", "Return"):
        name = "Returns" if title == "Return" else title
        return f"**{name}:** {body}"
    heading = {
        "Call argument": "Other Parameters: Call arguments:",
        "Example": "Examples: Example:",
    }[title]
    return f"{heading}\n{_indent(body)}"


def _indent(body: str) -> str:
    return textwrap.indent(body, "    ")


class KerasDocstrings(griffe.Extension):
    """Rewrites docstrings as they are read; resolves lazy names of packages."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            is_typed = bool(
                getattr(obj, "returns", None) or getattr(obj, "annotation", None)
            )
            obj.docstring.value = to_google(obj.docstring.value, is_typed)

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        modules = [pkg]
        for module in modules:
            modules += [m for m in module.modules.values() if not m.is_alias]
            if "_MEMBERS" in module.members:
                targets = ast.literal_eval(str(module.members["_MEMBERS"].value))
                for name, target in targets.items():
                    path = f"{target}.{name}"
                    module.set_member(name, griffe.Alias(name, path))
