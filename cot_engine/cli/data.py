"""`cot-engine data ...`: data for training. What the commands do is in `data_build.py` and
`data_check.py`, which are imported when they run."""

from __future__ import annotations

from collections.abc import Callable

import typer

Action = Callable[[], None]

data = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@data.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    """Make and check data for training in stages."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
