"""Writes docs/api: a page of Markdown for each public module, from its docstrings.

Run it after a change of a public name, a signature or a docstring:

    python docs/make_api.py

The tests compare the pages with what it would write.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import sys
import textwrap
import types

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "api"
PACKAGES = ("tf_dlrm", "pipelines")
MODULES = (
    "tf_dlrm",
    "tf_dlrm.layers",
    "tf_dlrm.embedding",
    "tf_dlrm.optimizers",
    "tf_dlrm.sharding",
    "tf_dlrm.sharding.planning",
    "tf_dlrm.training",
    "tf_dlrm.training.checkpoints",
    "tf_dlrm.metrics",
    "tf_dlrm.callbacks",
    "tf_dlrm.serving",
    "tf_dlrm.interop",
    "pipelines",
    "pipelines.criteo",
    "pipelines.vocabulary",
    "pipelines.prepare",
    "pipelines.records",
    "pipelines.synthetic",
    "pipelines.runs",
    "pipelines.evaluation",
    "pipelines.scoring",
    "pipelines.placement",
)
TITLES = (
    "Args",
    "Attributes",
    "Call arguments",
    "Returns",
    "Yields",
    "Raises",
    "Example",
    "Reference",
)
LISTS = ("Args", "Attributes", "Call arguments", "Raises")
WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Parameter:
    """How a parameter is written in the source.

    Attributes:
        annotation: Its type hint, or "".
        default: Its default, or "".
    """

    annotation: str = ""
    default: str = ""


# The source


def _tree(of) -> tuple[ast.AST, str]:
    source = textwrap.dedent(inspect.getsource(of))
    return ast.parse(source).body[0], source


def _segment(source, node) -> str:
    """A piece of the source on one line."""
    if node is None:
        return ""
    text = " ".join(ast.get_source_segment(source, node).split())
    text = re.sub(r"([\[(]) ", r"\1", text)
    return re.sub(r",? ([\])])", r"\1", text)


def _of_function(function) -> tuple[dict[str, Parameter], str]:
    """Parameters by name as they are written, and the type of what is returned."""
    node, source = _tree(inspect.unwrap(function))
    given = node.args
    positional = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(positional) - len(given.defaults)) + given.defaults
    pairs = [*zip(positional, defaults), *zip(given.kwonlyargs, given.kw_defaults)]
    pairs += [(each, None) for each in (given.vararg, given.kwarg) if each]
    values = inspect.signature(function).parameters
    found = {}
    for argument, default in pairs:
        written = _segment(source, default) if default is not None else ""
        if isinstance(default, ast.Name):  # a constant of the module: its value
            written = repr(values[argument.arg].default)
        found[argument.arg] = Parameter(_hint(source, argument.annotation), written)
    return found, _hint(source, node.returns)


def _hint(source, node) -> str:
    """A type hint; names that are quoted since they come later, without quotes."""
    return _segment(source, node).strip('"')


def _fields(cls) -> dict[str, tuple[Parameter, str]]:
    """Fields of a class and of its bases here: how they are written, and what for."""
    found = {}
    for base in reversed(_own_bases(cls)):
        node, source = _tree(base)
        body = [*node.body, None]
        for each, following in zip(body, body[1:]):
            if isinstance(each, ast.AnnAssign):
                name, annotation = each.target.id, _hint(source, each.annotation)
            elif isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
                name, annotation = each.targets[0].id, ""
            else:
                continue
            default = _segment(source, each.value)
            if isinstance(each.value, ast.Call):  # a fresh one for each object
                default = "..."
            said = ""
            if isinstance(following, ast.Expr) and isinstance(
                getattr(following.value, "value", None), str
            ):
                said = inspect.cleandoc(following.value.value)
            if not name.startswith("_"):
                found[name] = Parameter(annotation, default), said
    return found


def _own_bases(cls) -> list[type]:
    """The class and its bases that are of this project."""
    packages = tuple(f"{package}." for package in PACKAGES)
    return [base for base in cls.__mro__ if base.__module__.startswith(packages)]


# Signatures


def _constructor(cls):
    """The function that says what a class is called with, if it has one of its own."""
    for base in _own_bases(cls):
        for name in ("__init__", "__new__"):
            if name in vars(base):
                return vars(base)[name]
    return None


def signature(name: str, of) -> str:
    """How an object is called, with type hints: one line, or one for each argument."""
    returned = ""
    if inspect.isclass(of):
        function = _constructor(of)
        if function is None:
            return name
        if dataclasses.is_dataclass(of) or issubclass(of, tuple):
            written = {key: each for key, (each, _) in _fields(of).items()}
        else:
            written, _ = _of_function(function)
    else:
        function = getattr(of, "__func__", of)
        written, returned = _of_function(function)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls", "_cls"):
        parameters = parameters[1:]
    texts = [_parameter(each, written) for each in _with_star(parameters)]
    end = f") -> {returned}" if returned else ")"
    line = f"{name}({', '.join(texts)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {text}," for text in texts), end])


def _with_star(parameters):
    """`None` stands for the star before arguments that go by name only."""
    seen = False
    for each in parameters:
        seen = seen or each.kind is each.VAR_POSITIONAL
        if each.kind is each.KEYWORD_ONLY and not seen:
            seen = True
            yield None
        yield each


def _parameter(parameter, written) -> str:
    if parameter is None:
        return "*"
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
    said = written.get(parameter.name, Parameter())
    text = stars.get(parameter.kind, "") + parameter.name
    if said.annotation:
        text += f": {said.annotation}"
    if parameter.default is not parameter.empty and said.default:
        text += f" = {said.default}" if said.annotation else f"={said.default}"
    return text


# Docstrings


def docstring(of) -> str:
    """An object's own docstring; "" where Python made it or it is inherited."""
    said = vars(of).get("__doc__") if inspect.isclass(of) else of.__doc__
    if not said or re.match(rf"{getattr(of, '__name__', '')}\(", said):
        return ""
    return inspect.cleandoc(said)


def summary(said: str) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(said.split("\n\n")[0].split())


def to_markdown(said: str) -> str:
    """A docstring in Keras' form as Markdown."""
    pieces = re.split(rf"^({'|'.join(TITLES)})s?:\n", said, flags=re.M)
    parts = [_paragraphs(pieces[0])]
    for title, body in zip(pieces[1::2], pieces[2::2]):
        body = textwrap.dedent(body).strip("\n")
        text = _entries(body) if title in LISTS else _paragraphs(body)
        parts.append(f"**{title}**\n\n{text}")
    return "\n\n".join(part for part in parts if part)


def _entries(body: str) -> str:
    """`name: text` with its further lines indented, as a list."""
    lines = []
    for line in body.splitlines():
        found = re.match(r"([*\w][\w.,* ]*): *(.*)", line)
        if found:
            lines.append(f"- `{found[1]}`: {found[2]}".rstrip())
        else:
            lines.append(f"  {line.strip()}".rstrip())
    return "\n".join(lines)


def _paragraphs(body: str) -> str:
    """Text as it is, doctests as blocks of code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", textwrap.dedent(body).strip("\n")):
        if paragraph.lstrip().startswith(">>>"):
            paragraph = f"```pycon\n{textwrap.dedent(paragraph)}\n```"
        parts.append(paragraph)
    return "\n\n".join(parts)


# Pages


def _members(cls):
    """Documented public methods and properties that are of this project."""
    found = {}
    for base in reversed(_own_bases(cls)):
        for name, value in vars(base).items():
            if isinstance(value, classmethod | staticmethod):
                value = value.__func__
            kinds = (types.FunctionType, property)
            if isinstance(value, kinds) and not name.startswith("_"):
                if value.__doc__:
                    found[name] = value
    found = {k: v for k, v in found.items() if k not in ("get_config", "from_config")}
    return sorted(found.items())


def _describe(name: str, of, page: str) -> list[str]:
    """The section of a class or a function."""
    source = pathlib.Path(inspect.getsourcefile(inspect.unwrap(of)))
    link = os.path.relpath(source, FOLDER).replace(os.sep, "/")
    said = docstring(of)
    parts = [f"## {name}", f"```python\n{signature(f'{page}.{name}', of)}\n```"]
    parts += [to_markdown(said)]
    if inspect.isclass(of):
        fields = {k: text for k, (_, text) in _fields(of).items() if text}
        if fields:
            lines = [f"- `{k}`: {' '.join(v.split())}" for k, v in fields.items()]
            parts.append("**Fields**\n\n" + "\n".join(lines))
        for member, value in _members(of):
            parts.append(f"### {name}.{member}")
            if isinstance(value, property):
                parts.append(to_markdown(inspect.cleandoc(value.__doc__)))
            else:
                call = signature(member, value)
                text = to_markdown(inspect.cleandoc(value.__doc__))
                parts += [f"```python\n{call}\n```", text]
    return [*parts, f"[{source.name}]({link})"]


def _constant(name: str, value) -> list[str]:
    if isinstance(value, dict):
        keys = ", ".join(f"`{key}`" for key in value)
        return [f"## {name}", f"A dict with the keys {keys}."]
    return [f"## {name}", "A constant."]


def make_page(name: str) -> str:
    """The page of a module."""
    module = importlib.import_module(name)
    said = inspect.cleandoc(module.__doc__)
    lines, parts = [], []
    for public in sorted(module.__all__, key=lambda each: each.lower()):
        value = getattr(module, public)
        full = f"{name}.{public}"
        if inspect.ismodule(value):
            text = summary(value.__doc__)
            label = f"[`{public}`]({full}.md)" if full in MODULES else f"`{public}`"
        elif inspect.isclass(value) or callable(value):
            anchor = public.lower()
            text, label = summary(docstring(value)), f"[`{public}`](#{anchor})"
            parts += _describe(public, value, name)
        else:
            text, label = "", f"[`{public}`](#{public.lower()})"
            parts += _constant(public, value)
        lines.append(f"| {label} | {text.replace('|', chr(92) + '|')} |")
    table = "\n".join(["| name | |", "| --- | --- |", *lines])
    note = "<!-- Written by docs/make_api.py from the docstrings. -->"
    return "\n\n".join([note, f"# {name}", said, table, *parts]) + "\n"


def make_index() -> str:
    """The table of the pages in docs/README.md."""
    lines = ["| module | |", "| --- | --- |"]
    for name in MODULES:
        said = summary(importlib.import_module(name).__doc__)
        lines.append(f"| [`{name}`](api/{name}.md) | {said} |")
    return "\n".join(lines)


def make_pages() -> dict[str, str]:
    """All pages by file name."""
    return {f"{name}.md": make_page(name) for name in MODULES}


def main() -> None:
    """Writes the pages, and removes those of modules that are no more."""
    FOLDER.mkdir(exist_ok=True)
    pages = make_pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    index = FOLDER.parent / "README.md"
    start, mark, _ = index.read_text(encoding="utf-8").partition("| module | |\n")
    assert mark, f"{index} lost its table of modules"
    index.write_text(start + make_index() + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
