"""The commands, and the flags of those that answer. What a command does is in the file of its name,
which is imported when it runs: `--help` loads neither torch nor PIL nor rich."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from cot_engine.cli.data import data
from cot_engine.cli.measuring import ablate, judge_report, report, score
from cot_engine.cli.options import Action, DryRun, Json, Quiet, Verbose, flags
from cot_engine.cli.options import option as _option
from cot_engine.cli.options import usage as _usage
from cot_engine.cli.training import train, train_judge, train_verifier

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(wanted: bool) -> None:
    if wanted:
        from cot_engine import __version__

        typer.echo(f"cot-engine {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Staged reasoning for vision-language models, searched stage by stage."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=_usage("[IMAGE] QUESTION"))
@flags(after="image")
def solve(
    words: Annotated[list[str], typer.Argument(metavar="[IMAGE] QUESTION", hidden=True)],
    image: Annotated[
        list[str] | None,
        _option("--image", "-i", metavar="PATH", help="A further picture; may be repeated."),
    ] = None,
    config: Annotated[
        str | None,
        _option("--config", "-c", metavar="FILE", help="A TOML file: n = 4, top_p = 1 ..."),
    ] = None,
    trace: Annotated[
        str | None, _option("--trace", metavar="FILE", help="Record the search, line by line.")
    ] = None,
    allow_incomplete: Annotated[
        bool, _option("--allow-incomplete", help="Exit 0, not 4, with an answer that was cut.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Answer a question, with a picture (- is stdin) or without.

    The answer goes to stdout, the search to stderr. Values come from flags, else from COT_ENGINE_*
    variables, else from the --config file; defaults stand in [brackets].
    """
    from cot_engine.cli.solve import run

    more: dict[str, Any] = {"trace": trace, "allow_incomplete": allow_incomplete}
    more |= {"dry_run": dry_run, "json": json, "quiet": quiet}
    return partial(run, words, image or [], config, options, **more)


@app.command(cls=_usage("DATA"))
@flags(after="fresh")
def answer(
    source: Annotated[str, typer.Argument(metavar="DATA", hidden=True)],
    question: Annotated[
        str | None,
        _option("--question", metavar="TEXT", help="What a folder of pictures is asked."),
    ] = None,
    split: Annotated[
        str | None, _option("--split", metavar="NAME", help="Only that part of the data.")
    ] = None,
    limit: Annotated[
        int | None, _option("--limit", metavar="N", help="The first so many, shuffled or not.")
    ] = None,
    shuffle: Annotated[
        int | None, _option("--shuffle", metavar="SEED", help="Ask in a random order.")
    ] = None,
    out: Annotated[
        str | None,
        _option(
            "--out",
            metavar="FILE",
            help="A .jsonl, .csv or .tsv. [the data's name.predictions.jsonl]",
        ),
    ] = None,
    traces: Annotated[
        str | None, _option("--traces", metavar="FOLDER", help="Record each search in it.")
    ] = None,
    fresh: Annotated[
        bool, _option("--fresh", help="Begin anew; what is there is renamed.")
    ] = False,
    config: Annotated[
        str | None, _option("--config", "-c", metavar="FILE", help="A TOML file as of solve.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Answer a file of questions, and say how well.

    DATA is a .jsonl, .csv or .tsv file, a folder of pictures, a data set folder of Hugging Face's,
    or scenes. Each answer is a line of a predictions file as soon as it is there: the same command
    goes on where it was stopped. How many are right goes to stdout.
    """
    from cot_engine.cli.answer import run

    given = partial(run, source, question, split, limit, shuffle, out, traces, config, options)
    return partial(given, fresh=fresh, dry_run=dry_run, json=json, quiet=quiet)


@app.command(cls=_usage("FILE.jsonl"))
@flags(
    *("judge", "tournament", "model", "device"),
    after="html",
    judge="Judge again with this one; nothing is generated.",
    tournament="Judge again in this tournament.",
    model="Of a judge that needs one. [the trace's, if yours]",
    device="Of that model. [{}]",
)
def trace(
    file: Annotated[str, typer.Argument(metavar="FILE.jsonl", hidden=True)],
    html: Annotated[
        str | None, _option("--html", metavar="OUT.html", help="Write a page; - is stdout.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Draw a recorded search (solve --trace), or judge it again.

    Prints the tree of stages, candidates and matches, unless --html or --json is given.
    """
    from cot_engine.cli.trace import run

    return partial(run, file, html, options, json=json, quiet=quiet)


app.command(cls=_usage("CONFIG.toml|PRESET"))(ablate)
app.command(cls=_usage("STORE"))(report)
app.command(cls=_usage("BENCHMARK PREDICTIONS"))(score)
app.command("judge-report", cls=_usage(""))(judge_report)
app.command(cls=_usage("CONFIG.toml"))(train)
app.command("train-judge", cls=_usage("CONFIG.toml"))(train_judge)
app.command("train-verifier", cls=_usage("DATA"))(train_verifier)


@app.command(cls=_usage(""))
@flags(
    after="timeout",
    model="Which to serve. [{}]",
    in_flight="Searches at a time; others wait. [{}]",
    budget="Of a search that names none.",
)
def serve(
    config: Annotated[
        str | None,
        _option("--config", "-c", metavar="FILE", help="A TOML file: n = 4, top_p = 1 ..."),
    ] = None,
    host: Annotated[
        str, _option("--host", metavar="HOST", help="Others than this machine's need API keys.")
    ] = "127.0.0.1",
    port: Annotated[
        int, _option("--port", metavar="N", min=0, max=65535, help="0 is any free one. [8000]")
    ] = 8000,
    name: Annotated[
        str | None, _option("--name", metavar="NAME", help="What clients call the model. [its own]")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        _option("--allow-host", metavar="NAME", help="A Host header may have it; repeatable."),
    ] = None,
    max_queue: Annotated[
        int | None, _option("--max-queue", metavar="N", help="Searches that may wait. [64]")
    ] = None,
    max_n: Annotated[
        int | None, _option("--max-n", metavar="N", help="Candidates of a selection. [16]")
    ] = None,
    max_budget: Annotated[
        str | None, _option("--max-budget", metavar="AMOUNT", help="The most for one search.")
    ] = None,
    max_total: Annotated[
        str | None,
        _option("--max-total", metavar="AMOUNT", help="The most for all of a client's."),
    ] = None,
    per: Annotated[
        float | None, _option("--per", metavar="SECONDS", help="In so long. [86400]")
    ] = None,
    max_upload: Annotated[
        int | None, _option("--max-upload", metavar="BYTES", help="Of a request. [32000000]")
    ] = None,
    max_pictures: Annotated[
        int | None, _option("--max-pictures", metavar="N", help="Of a question. [16]")
    ] = None,
    max_picture: Annotated[
        int | None, _option("--max-picture", metavar="PIXELS", help="Of a picture. [25000000]")
    ] = None,
    traces: Annotated[
        str | None,
        _option("--traces", metavar="FOLDER", help="Keep all traces. [the last 200, in memory]"),
    ] = None,
    grace: Annotated[
        float | None,
        _option("--grace", metavar="SECONDS", help="For what runs when it is ended. [30]"),
    ] = None,
    timeout: Annotated[
        float | None, _option("--timeout", metavar="SECONDS", help="Of one search. [600]")
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Serve the engine to clients of OpenAI's API.

    At /v1/chat/completions, /v1/models, /health, /metrics and /v1/traces. Options of a search hold
    where a request has none. API keys: COT_ENGINE_SERVE_KEYS=KEY,KEY or COT_ENGINE_SERVE_KEY_FILE.
    """
    from cot_engine.cli.serve import run

    limits: dict[str, Any]
    limits = {"queue": max_queue, "n": max_n, "budget": max_budget, "total": max_total}
    limits |= {"per": per, "upload": max_upload, "pictures": max_pictures, "pixels": max_picture}
    limits |= {"folder": traces, "grace": grace, "seconds": timeout}
    more: dict[str, Any] = {"host": host, "port": port, "name": name, "hosts": allow_host or []}
    return partial(run, config, options, **more, limits=limits, quiet=quiet)


@app.command("list", cls=_usage("strategies|judges|tournaments|stages|benchmarks|models [MODEL]"))
@flags("plan", after="model")
def list_(
    what: Annotated[str, typer.Argument(metavar="WHAT", hidden=True)],
    model: Annotated[str | None, typer.Argument(metavar="MODEL", hidden=True)] = None,
    probe: Annotated[
        str | None,
        _option("--probe", metavar="URL", help="Of models: ask a server what it can do."),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """List what there is to choose from, with its parameters.

    Of a MODEL, a folder or a hub name, what it needs: nothing is loaded.
    """
    from cot_engine.cli.listing import run

    return partial(run, what, model, options.get("plan"), probe, json=json)


app.add_typer(data, name="data")
