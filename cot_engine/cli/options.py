"""What the declarations of commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from cot_engine.core.options import about, options_of
from cot_engine.errors import InputError
from cot_engine.options.config import RunConfig
from cot_engine.options.layers import parse_parameters, typed


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
DryRun = Annotated[
    bool, option("--dry-run", help="Say what would run and what it needs; load nothing.")
]
Verbose = Annotated[bool, option("--verbose", help="Show a traceback with an error.")]
Json = Annotated[bool, option("--json", help="Print everything as JSON on stdout.")]


# --- the options of a search ---------------------------------------------------------------------

_FIELDS = {each.name: each for each in options_of(RunConfig)}
_N = option("--n", "-n", metavar="N", help="Candidates of each selection, 1 to 1024.")
_KEEP = option("--keep", metavar="N", help="How many go on from it.")
_INNER = option("--allow-inner-url", help="Also from this machine and inner networks.")


def _flags(name: str, help: str) -> list[inspect.Parameter]:
    """The flags of an option: one, as a rule."""
    each = _FIELDS[name]
    told, long = about(each), "--" + name.replace("_", "-")
    help = (help or told.help).format(each.default)
    if name == "parameters":
        several = option("--parameter", "-p", metavar=told.metavar, help=help)
        return [
            *(_parameter("n", str | None, _N), _parameter("keep", str | None, _KEEP)),
            _parameter(name, list[str] | None, several),
        ]
    if each.default is False:
        switch = option(f"{long}/--no-{long[2:]}", help=help)
        inner = [_parameter("allow_inner_url", bool, _INNER, False)] * (name == "allow_url")
        return [_parameter(name, bool | None, switch), *inner]
    names = [long, told.short] if told.short else [long]
    return [_parameter(name, str | None, option(*names, metavar=told.metavar, help=help))]


def _parameter(name: str, kind: Any, said: Any, default: Any = None) -> inspect.Parameter:
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[kind, said])


def flags(*names: str, after: str, **helps: str) -> Callable[[Callable], Callable]:
    """Gives a command the flags of these options of RunConfig, all if none is named, behind its
    own parameter `after`; `helps` are what it says of some in its own words.

    The command gets what was given of them as `**options`, fit for `load_config`.
    """
    more = [each for name in names or _FIELDS for each in _flags(name, helps.get(name, ""))]
    keys = {each.name for each in more}

    def decorate(command: Callable) -> Callable:
        *own, _ = inspect.signature(command, eval_str=True).parameters.values()
        at = next(k for k, each in enumerate(own, 1) if each.name == after)
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]

        def called(**values: Any) -> Action:
            given = {key: values.pop(key) for key in keys}
            return command(**values, **_given(given))

        called.__name__, called.__doc__ = command.__name__, command.__doc__
        called.__signature__ = inspect.Signature([*own[:at], *more, *own[at:]])  # type: ignore[attr-defined]  # Typer reads it
        return called

    return decorate


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The values of flags that were given, of the types that their fields have."""
    if values.pop("allow_inner_url", False):
        values["allow_url"] = "inner"
    if "parameters" in values:
        values["parameters"] = parse_parameters(values["parameters"] or []) or None
    given = {key: value for key, value in values.items() if value is not None}
    return {key: typed(key, v) if isinstance(v, str) else v for key, v in given.items()}
