"""Names of parameters in the messages of functions -> the flags of a command.

A Python function names its parameters: "`epochs` must be at least 1", "leave
`resume=True` out". Whoever typed a command knows flags: --epochs, --resume.
"""

import dataclasses
import re
import typing

_NAMED = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def translate(message: str, command: type) -> str:
    """Return a message with flags in place of the parameters that a command sets.

    Args:
        message: The message of a function, with names of parameters in backticks.
        command: The class of the command; its `parameters` give the option of each
            parameter of another name.

    Example:

    >>> from pipelines.commands import COMMANDS
    >>> translate("Leave `epochs` out, or `resume=True`.", COMMANDS["train"])
    'Leave --epochs out, or --resume.'
    """
    if "is damaged" in message:  # it names what a file holds
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


def _flags(command) -> dict[str, str]:
    """Return the flag of each field of a command, and of the configs in it."""
    flags = {}
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        kind, *annotations = typing.get_args(hints[field.name]) or [hints[field.name]]
        if dataclasses.is_dataclass(kind):
            flags |= _flags(kind)
            continue
        names = (getattr(each, "name", None) for each in annotations)
        name = next((n for n in names if isinstance(n, str)), field.name)
        flags[field.name] = name.replace("_", "-")
    return flags
