"""Rewrites the parameters in error messages, spelled as in Python, as options of the command line."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import typer
import typer.main

from overlap_tool.errors import OverlapToolError

_NAMED = re.compile(r"`(\w+)(?:=([^`]*))?`")
"""`tile` or `tile=256` in backquotes, as in Markdown; at the start of an error it stands alone."""


MistypedError: Any = typer.BadParameter.__base__
"""typer's errors, of the copy of click that it uses."""


def as_one_line(error: Any) -> str:
    """The message of one of typer's errors, which names the option, and where to find help."""
    command = error.ctx.command_path if error.ctx else "overlap-tool"
    reason = " ".join(error.format_message().replace("Value error, ", "").split())
    return f"{reason}{'' if reason.endswith(('.', '?')) else '.'} {command} --help lists what there is"


def as_typed(error: OverlapToolError, app: typer.Typer) -> str:
    """The message of an error, its parameters spelled as options."""
    flags = _flags(app)

    def spelled(found: re.Match[str]) -> str:
        return _option(flags, found[1], found[2]) or found[0]

    where = re.fullmatch(r"(\w+)=(.*)", error.where)
    begin = (where and _option(flags, where[1], where[2])) or _NAMED.sub(spelled, error.where)
    return f"{begin}: {_NAMED.sub(spelled, error.reason)}. {_NAMED.sub(spelled, error.way_out)}"


def _flags(app: typer.Typer) -> dict[str, str]:
    """The options of all commands, by the names of their parameters."""
    group: Any = typer.main.get_command(app)
    parameters = (parameter for command in group.commands.values() for parameter in command.params)
    return {one.name: one.opts[0] for one in parameters if one.opts[0].startswith("--")}


def _option(flags: Mapping[str, str], name: str, value: str | None) -> str | None:
    """The option as typed; None if there is no such option, or no way to type such a value."""
    if name not in flags or value is None:
        return flags.get(name)
    try:
        typed = _typed(ast.literal_eval(value))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return f"{flags[name]} {typed}".strip()


def _typed(value: object) -> str:
    if value is True:  # a flag takes no value
        return ""
    if isinstance(value, list):
        return ",".join(map(_typed, value))
    if isinstance(value, tuple):
        return "x".join(map(_typed, value))
    return shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))
