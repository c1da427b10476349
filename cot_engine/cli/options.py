"""What the declarations of commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cot_engine.errors import InputError


def option(*names: str, help: str, **more: Any) -> Any:
    """An option whose default its help names itself."""
    return typer.Option(*names, help=help, show_default=False, **more)


def usage(arguments: str) -> type[TyperCommand]:
    """A command whose usage line is ours: the parser cannot say "[IMAGE] QUESTION", and writes
    the others differently from version to version."""

    class Command(TyperCommand):
        def collect_usage_pieces(self, ctx: Any) -> list[str]:
            return ["[OPTIONS]", arguments]

        def invoke(self, ctx: Any) -> Any:
            for each in self.params:
                _not_blank(each, ctx.params.get(each.name))
            return super().invoke(ctx)

    return Command


def _not_blank(parameter: Any, value: Any) -> None:
    """An option that is there says something: an unset variable in a script would else mean what
    leaving it out does, or a file without a name."""
    if parameter.param_type_name != "option":
        return
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, str) and not text.strip():
            raise InputError(f"{parameter.opts[0]} is empty.", "Give it a value, or leave it out.")


Action = Callable[[], None]
"""What a command returns: `main` calls it."""

Quiet = Annotated[bool, option("--quiet", "-q", help="Say nothing on stderr but errors.")]
Verbose = Annotated[bool, option("--verbose", help="Show a traceback with an error.")]
Json = Annotated[bool, option("--json", help="Print everything as JSON on stdout.")]
