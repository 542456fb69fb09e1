"""Makes a command of a function: shared options come from dataclasses, examples go into the help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def command(examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For typer: a parameter whose type is a dataclass becomes one option for each of its fields."""

    def made(function: Callable[..., None]) -> Callable[..., None]:
        # not `get_type_hints`, which under Python 3.10 hides the option if the default is None
        parameters = signature(function, eval_str=True).parameters
        groups = {
            name: parameter.annotation
            for name, parameter in parameters.items()
            if isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)
        }
        options = [
            option
            for name, parameter in parameters.items()
            for option in (_options(groups[name]) if name in groups else [parameter])
        ]

        @wraps(function)
        def called(**given: Any) -> None:
            grouped = {
                name: group(**{field.name: given.pop(field.name) for field in fields(group)})
                for name, group in groups.items()
            }
            function(**given, **grouped)

        called.__doc__ = f"{function.__doc__}\n{examples}"
        called.__annotations__ = {option.name: option.annotation for option in options}
        called.__signature__ = Signature(  # type: ignore[attr-defined]
            [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options]
        )
        return called

    return made


def _options(group: type) -> list[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]
