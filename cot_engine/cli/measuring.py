"""The flags of `ablate`, `report`, `score` and `judge-report`; each is done in its own file."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from cot_engine.cli.options import Action, DryRun, Json, Quiet, Verbose, flags, option


def _grader(about: str) -> Any:
    return option("--grader", metavar="MODEL", help=about)


def _verdicts(beside: str) -> Any:
    about = f"Where its replies are kept and looked for. [{beside}.verdicts.jsonl]"
    return option("--verdicts", metavar="FILE.jsonl", help=about)


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
        option("--store", metavar="FILE", help="Where results go. [the grid's name.sqlite]"),
    ] = None,
    problems: Annotated[
        int | None, option("--problems", metavar="N", help="Of the data set. [the grid's]")
    ] = None,
    data: Annotated[
        list[str] | None,
        option(
            "--data",
            metavar="FOLDER|BENCHMARK=FILE",
            help="Of a table: where its benchmarks' files are.",
        ),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        option(
            "--checkpoint", metavar="NAME=MODEL", help="Of a table: which model a row's name means."
        ),
    ] = None,
    grader: Annotated[str | None, _grader("Of a table: decides what rules leave open.")] = None,
    verdicts: Annotated[str | None, _verdicts("STORE")] = None,
    rules: Annotated[
        str | None,
        option("--rules", metavar="NAME", help="Of a table: another set, as of score."),
    ] = None,
    predictions: Annotated[
        str | None,
        option(
            "--predictions",
            metavar="FOLDER",
            help="Of a table: write each row's answers there, for score.",
        ),
    ] = None,
    workers: Annotated[
        str, option("--workers", metavar="local|ray", help="Who does the searches. [local]")
    ] = "local",
    ray_address: Annotated[
        str | None,
        option("--ray-address", metavar="ADDRESS", help="Of a running cluster. [a new one here]"),
    ] = None,
    wait: Annotated[
        bool, option("--wait", help="Wait for another run that writes to the store.")
    ] = False,
    retry: Annotated[
        bool, option("--retry/--no-retry", help="Try searches again that failed. [yes]")
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


def report(
    store: Annotated[str, typer.Argument(metavar="STORE", hidden=True)],
    format: Annotated[
        str | None,
        option(
            "--format",
            metavar="md|json|html|csv|inspect",
            help="[by the name of --out, else md]",
        ),
    ] = None,
    out: Annotated[
        str | None,
        option("--out", metavar="FILE|-", help="Write it there; for inspect a folder. [stdout]"),
    ] = None,
    run_id: Annotated[
        str | None, option("--run", metavar="ID", help="Which run of the store. [the last]")
    ] = None,
    where: Annotated[
        str | None,
        option("--where", metavar="SQL", help="Only these searches: \"type = 'count'\" ..."),
    ] = None,
    traces: Annotated[
        int | None,
        option("--traces", metavar="N", min=0, help="Problems drawn in the HTML page. [60]"),
    ] = None,
    trace: Annotated[
        str | None,
        option(
            "--trace",
            metavar="PROBLEM/CELL/SEED",
            help="Write one search's trace instead, for cot-engine trace.",
        ),
    ] = None,
    runs: Annotated[bool, option("--runs", help="List the runs instead.")] = False,
    json: Annotated[bool, option("--json", help="Short for --format json.")] = False,
    verbose: Verbose = False,
) -> Action:
    """Report on the searches that ablate stored.

    Accuracy at what cost, paired comparisons, scaling, what selection and sampling lose, judges.
    In CSV, a text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    from cot_engine.cli.report import run

    return partial(run, store, run_id, format, out, where, traces, runs, trace, json=json)


def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCHMARK", hidden=True)],
    predictions: Annotated[str, typer.Argument(metavar="PREDICTIONS", hidden=True)],
    rules: Annotated[
        list[str] | None,
        option(
            "--rules",
            metavar="NAME",
            help="vlmevalkit-2024, vlmevalkit-2026, official, official-int, conclusion; two to"
            " compare. [official for MathVista, else vlmevalkit-2026]",
        ),
    ] = None,
    show: Annotated[
        str | None,
        option(
            "--show",
            metavar="disagreements|unresolved|items",
            help="Single predictions in place of tables: what was extracted, by which rule.",
        ),
    ] = None,
    against: Annotated[
        str | None,
        option(
            "--against", metavar="FILE", help="The questions, if PREDICTIONS does not have them."
        ),
    ] = None,
    grader: Annotated[str | None, _grader("Decides what the rules leave open. [nobody]")] = None,
    verdicts: Annotated[str | None, _verdicts("PREDICTIONS")] = None,
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
        option(
            "--judge",
            metavar="NAME",
            help="May be repeated. [the model's own, self, likelihood, random]",
        ),
    ] = None,
    data: Annotated[
        str,
        option(
            "--data",
            metavar="SOURCE",
            help="scenes, a .jsonl or .tsv, or a file of labelled pairs or steps. [scenes/val]",
        ),
    ] = "scenes/val",
    problems: Annotated[
        int, option("--problems", metavar="N", help="The first so many of it. [100]")
    ] = 100,
    strategies: Annotated[
        list[str] | None,
        option(
            "--strategy",
            "-s",
            metavar="NAME",
            help="Who samples; may be repeated. [stage-beam, best-of-n]",
        ),
    ] = None,
    n: Annotated[
        int | None,
        option("--n", "-n", metavar="N", help="Candidates of each selection. [the strategy's]"),
    ] = None,
    rollouts: Annotated[
        int,
        option(
            "--rollouts",
            metavar="N",
            help="Continuations that say what a stage is worth; 1: the likeliest. [1]",
        ),
    ] = 1,
    controls: Annotated[
        bool | None,
        option(
            "--controls/--no-controls",
            help="Judge with a grey and with another picture too. [judges that ask the model]",
        ),
    ] = None,
    fit: Annotated[
        bool, option("--fit", help="Fit the weight of the judge self+likelihood on the pairs.")
    ] = False,
    write_profile: Annotated[
        bool,
        option("--write-profile", help="Write it into cot_engine.json in the model's folder."),
    ] = False,
    config: Annotated[
        str | None, option("--config", "-c", metavar="FILE", help="A TOML file as of solve.")
    ] = None,
    out: Annotated[
        str | None, option("--out", metavar="FILE.json", help="Write everything there too.")
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
