"""`cot-engine data ...`: data for training. The commands are in `data_build.py` and
`data_check.py`, which import what they need when they run."""

from __future__ import annotations

import typer

from cot_engine.cli.data_build import build
from cot_engine.cli.data_check import check
from cot_engine.cli.options import usage

data = typer.Typer(
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


@data.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    """Make and check data for training in stages."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


data.command("build", cls=usage("FILE"))(build)
data.command("check", cls=usage("FILE.jsonl"))(check)
