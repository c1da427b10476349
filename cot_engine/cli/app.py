"""The commands and their flags. What they do is in `solve.py`, `trace.py` and `listing.py`, which
are imported when they run: `--help` loads neither torch nor PIL nor rich."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from cot_engine.cli.data import data
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


@app.command(cls=_usage("CONFIG.toml|PRESET"))
@flags(
    *("model", "device", "dtype", "quantize", "adapter", "max_pixels", "probe"),
    *("in_flight", "memory"),
    after="problems",
    model="A folder, a hub name or a URL. [the grid's]",
)
def ablate(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml|PRESET", hidden=True)],
    store: Annotated[
        str | None,
        _option("--store", metavar="FILE", help="Where results go. [the grid's name.sqlite]"),
    ] = None,
    problems: Annotated[
        int | None, _option("--problems", metavar="N", help="Of the data set. [the grid's]")
    ] = None,
    data: Annotated[
        list[str] | None,
        _option(
            "--data",
            metavar="FOLDER|BENCHMARK=FILE",
            help="Of a table: where its benchmarks' files are.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        _option(
            "--checkpoint", metavar="NAME=MODEL", help="Of a table: which model a row's name means."
        ),
    ] = None,
    grader: Annotated[
        str | None,
        _option("--grader", metavar="MODEL", help="Of a table: decides what rules leave open."),
    ] = None,
    verdicts: Annotated[
        str | None,
        _option(
            "--verdicts",
            metavar="FILE.jsonl",
            help="Where its replies are kept and looked for. [STORE.verdicts.jsonl]",
        ),
    ] = None,
    rules: Annotated[
        str | None,
        _option("--rules", metavar="NAME", help="Of a table: another set, as of score."),
    ] = None,
    predictions: Annotated[
        str | None,
        _option(
            "--predictions",
            metavar="FOLDER",
            help="Of a table: write each row's answers there, for score.",
        ),
    ] = None,
    workers: Annotated[
        str, _option("--workers", metavar="local|ray", help="Who does the searches. [local]")
    ] = "local",
    ray_address: Annotated[
        str | None,
        _option("--ray-address", metavar="ADDRESS", help="Of a running cluster. [a new one here]"),
    ] = None,
    wait: Annotated[
        bool, _option("--wait", help="Wait for another run that writes to the store.")
    ] = False,
    retry: Annotated[
        bool, _option("--retry/--no-retry", help="Try searches again that failed. [yes]")
    ] = True,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Compare strategies on a data set, at matched compute.

    Runs every search of the grid that the store lacks: the same command goes on where it was
    stopped. A table goes to stdout; cot-engine report draws it all. The preset paper is a grid;
    paper-table is a table of six benchmarks and several checkpoints, from --data and --checkpoint.
    """
    from cot_engine.cli.ablate import run
    from cot_engine.cli.ablate_table import Flags

    more: dict[str, Any]
    more = {"workers": workers, "ray_address": ray_address, "wait": wait, "retry": retry}
    more["dry_run"] = dry_run
    where = (tuple(data or ()), tuple(checkpoint or ()))
    of_table = Flags(*where, grader, verdicts, rules, predictions, json)
    return partial(run, config, store, problems, options, of_table, **more, quiet=quiet)


@app.command(cls=_usage("STORE"))
def report(
    store: Annotated[str, typer.Argument(metavar="STORE", hidden=True)],
    format: Annotated[
        str | None,
        _option(
            "--format",
            metavar="md|json|html|csv|inspect",
            help="[by the name of --out, else md]",
        ),
    ] = None,
    out: Annotated[
        str | None,
        _option("--out", metavar="FILE|-", help="Write it there; for inspect a folder. [stdout]"),
    ] = None,
    run_id: Annotated[
        str | None, _option("--run", metavar="ID", help="Which run of the store. [the last]")
    ] = None,
    where: Annotated[
        str | None,
        _option("--where", metavar="SQL", help="Only these searches: \"type = 'count'\" ..."),
    ] = None,
    traces: Annotated[
        int | None,
        _option("--traces", metavar="N", min=0, help="Problems drawn in the HTML page. [60]"),
    ] = None,
    trace: Annotated[
        str | None,
        _option(
            "--trace",
            metavar="PROBLEM/CELL/SEED",
            help="Write one search's trace instead, for cot-engine trace.",
        ),
    ] = None,
    runs: Annotated[bool, _option("--runs", help="List the runs instead.")] = False,
    json: Annotated[bool, _option("--json", help="Short for --format json.")] = False,
    verbose: Verbose = False,
) -> Action:
    """Report on the searches that ablate stored.

    Accuracy at what cost, paired comparisons, scaling, what selection and sampling lose, judges.
    In CSV, a text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    from cot_engine.cli.report import run

    return partial(run, store, run_id, format, out, where, traces, runs, trace, json=json)


@app.command(cls=_usage("BENCHMARK PREDICTIONS"))
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", hidden=True)],
    predictions: Annotated[str, typer.Argument(metavar="PREDICTIONS", hidden=True)],
    rules: Annotated[
        list[str] | None,
        _option(
            "--rules",
            metavar="NAME",
            help="vlmevalkit-2024, vlmevalkit-2026, official, official-int, conclusion; two to"
            " compare. [official for MathVista, else vlmevalkit-2026]",
        ),
    ] = None,
    show: Annotated[
        str | None,
        _option(
            "--show",
            metavar="disagreements|unresolved|items",
            help="Single predictions in place of tables: what was extracted, by which rule.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        _option(
            "--against", metavar="FILE", help="The questions, if PREDICTIONS does not have them."
        ),
    ] = None,
    grader: Annotated[
        str | None,
        _option("--grader", metavar="MODEL", help="Decides what the rules leave open. [nobody]"),
    ] = None,
    verdicts: Annotated[
        str | None,
        _option(
            "--verdicts",
            metavar="FILE.jsonl",
            help="Where its replies are kept and looked for. [PREDICTIONS.verdicts.jsonl]",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> Action:
    """Score a benchmark's predictions, by named rules.

    BENCHMARK is MMStar, MMBench_DEV_EN_V11, HallusionBench ... (cot-engine list benchmarks).
    PREDICTIONS is what answer or a harness wrote, as TSV, CSV, JSON, JSONL or XLSX. What rules
    leave open is listed and counted, and no guess is made. Exit code 3: some rows have faults, the
    rest is scored.
    """
    from cot_engine.cli.score import run

    what = partial(run, benchmark, predictions, rules or [], show, against, grader, verdicts)
    return partial(what, json=json, quiet=quiet)


@app.command("judge-report", cls=_usage(""))
@flags(
    *(
        "model",
        "device",
        "dtype",
        "quantize",
        "adapter",
        "max_pixels",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "in_flight",
        "memory",
    ),
    after="write_profile",
    temperature="Of the samples. [{}]",
)
def judge_report(
    judges: Annotated[
        list[str] | None,
        _option(
            "--judge",
            metavar="NAME",
            help="May be repeated. [the model's own, self, likelihood, random]",
        ),
    ] = None,
    data: Annotated[
        str,
        _option(
            "--data",
            metavar="SOURCE",
            help="scenes, a .jsonl or .tsv, or a file of labelled pairs or steps. [scenes/val]",
        ),
    ] = "scenes/val",
    problems: Annotated[
        int, _option("--problems", metavar="N", help="The first so many of it. [100]")
    ] = 100,
    strategies: Annotated[
        list[str] | None,
        _option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="Who samples; may be repeated. [stage-beam, best-of-n]",
        ),
    ] = None,
    n: Annotated[
        int | None,
        _option("--n", "-n", metavar="N", help="Candidates of each selection. [the strategy's]"),
    ] = None,
    rollouts: Annotated[
        int,
        _option(
            "--rollouts",
            metavar="N",
            help="Continuations that say what a stage is worth; 1: the likeliest. [1]",
        ),
    ] = 1,
    controls: Annotated[
        bool | None,
        _option(
            "--controls/--no-controls",
            help="Judge with a grey and with another picture too. [judges that ask the model]",
        ),
    ] = None,
    fit: Annotated[
        bool, _option("--fit", help="Fit the weight of the judge self+likelihood on the pairs.")
    ] = False,
    write_profile: Annotated[
        bool,
        _option("--write-profile", help="Write it into cot_engine.json in the model's folder."),
    ] = False,
    config: Annotated[
        str | None, _option("--config", "-c", metavar="FILE", help="A TOML file as of solve.")
    ] = None,
    out: Annotated[
        str | None, _option("--out", metavar="FILE.json", help="Write everything there too.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    **options: Any,
) -> Action:
    """Examine judges on problems with known answers.

    A search with a random judge samples candidates; every judge is then asked about the same
    pairs of them: how often it is right, at which stage, why not, what it costs and what a search
    could gain with it. Ctrl-C reports on what was done.
    """
    from cot_engine.cli.judge_report import run

    judged = partial(run, judges or [], strategies or [], data, problems, n, rollouts, controls)
    return partial(judged, fit, write_profile, out, config, options, json=json, quiet=quiet)


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
