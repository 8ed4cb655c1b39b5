"""Turn names of parameters in messages into the flags of a command.

A Python function names its parameters: "`epochs` must be at least 1", "leave
`resume=True` out". A user of the command knows them as flags: --epochs, --resume.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing

import tyro

_NAMED = re.compile(r"`([a-z0-9_]+)(?:=([^`]*))?`")


def translate(message: str, command: type) -> str:
    """Return a message with flags instead of the parameters that a command sets.

    Args:
        message: The message of a function, with names of parameters in backticks.
        command: The class of the command; its `parameters` map each parameter whose
            name differs from its option to that option.

    Example:

    >>> from pipelines.commands import COMMANDS
    >>> translate("Leave `epochs` out, or `resume=True`.", COMMANDS["train"])
    'Leave --epochs out, or --resume.'
    """
    if "is damaged" in message:  # its names are those in a file
        return message
    flags = _flags(command)
    for parameter, option in getattr(command, "parameters", {}).items():
        flags[parameter] = flags[option]

    def flag(match):
        name, value = match.groups()
        if name not in flags:
            return match[0]
        if value == "False":
            return f"--no-{flags[name]}"
        return f"--{flags[name]}" + (f" {value}" if value not in (None, "True") else "")

    return _NAMED.sub(flag, message)


def describe_common(name: str, command: type) -> str:
    """Return the short help of a command: its common options, in groups.

    Args:
        name: The name of the command.
        command: The class of the command; its `common` maps each group to the names
            of its fields.
    """
    flags, texts = _flags(command), _docstrings(command)
    lines = [f"usage: tf-dlrm {name} [options]\n", inspect.cleandoc(command.__doc__)]
    width = 2 + max(len(flags[f]) for fields in command.common.values() for f in fields)
    for group, fields in command.common.items():
        lines.append(f"\n{group}")
        for field in fields:
            text = re.split(r"[.:;] ", f"{texts[field]} ")[0].rstrip(".")
            lines += textwrap.wrap(
                text,
                80,
                initial_indent=f"  --{flags[field]:<{width}}",
                subsequent_indent=" " * (width + 4),
                break_on_hyphens=False,
            )
    lines.append(f"\ntf-dlrm {name} --help-all shows all options, with their values.")
    return "\n".join(lines)


def tidy_help(command: type) -> None:
    """Set the help texts of a command: without line breaks, `None` or its default.

    The text of an option whose default is `None` names the effective default.

    Args:
        command: The class of the command, which is changed.
    """
    texts = _docstrings(command)
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        kind = (typing.get_args(hint) or (hint,))[0]
        if dataclasses.is_dataclass(kind):
            tidy_help(kind)
            continue
        option = tyro.conf.arg(
            help=texts.get(field.name),
            help_behavior_hint=_describe_default,
            **_name_value(hint),
        )
        command.__annotations__[field.name] = typing.Annotated[hint, option]


def _describe_default(default: str) -> str:
    return "" if default in ("", "None") else f"(default: {default})"


def _name_value(hint) -> dict[str, str]:
    """Return the name of the value of a type such as `int | None`: INT."""
    if typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    kinds = set(typing.get_args(hint))
    for kind in (str, int, float):
        if kinds == {kind, type(None)}:
            return {"metavar": kind.__name__.upper()}
    return {}


def _docstrings(command) -> dict[str, str]:
    """Return the text below each field of a command, and of the configs in it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(command))).body
    texts = {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body.body, body.body[1:])
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
    hints = typing.get_type_hints(command)
    for kind in hints.values():
        if dataclasses.is_dataclass(kind):
            texts |= _docstrings(kind)
    return texts


def _flags(command) -> dict[str, str]:
    """Return the flag of each field of a command, and of the configs in it."""
    flags = {}
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        kind, *annotations = typing.get_args(hints[field.name]) or [hints[field.name]]
        if dataclasses.is_dataclass(kind):
            flags |= _flags(kind)
            continue
        names = (getattr(note, "name", None) for note in annotations)
        name = next((n for n in names if isinstance(n, str)), field.name)
        flags[field.name] = name.replace("_", "-")
    return flags
