"""The command line: `main` runs it and turns every outcome into words and an exit code.

Exit codes: 0 done; 1 a defect of ours; 2 something the user can mend; 3 done, but something in the
data or among the searches failed; 4 an answer that is not whole (solve without --allow-incomplete);
130 Ctrl-C; 141 the reader of our output went away. Data goes to stdout, talk to stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback

INTERRUPTED, BROKEN_PIPE = 130, 141


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: that of the process, or `arguments` inside another program, whose
    threads and collector are then left alone. Everything is imported inside, so that Ctrl-C is
    quiet at any time."""
    ours = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    verbose = "--verbose" in arguments
    try:
        from cot_engine.cli import process

        if ours:
            process.settle()
        process.fit_streams()
        from cot_engine.cli.app import app

        # The commands return what is to be done instead of doing it: inside, the option parser
        # would turn Ctrl-C and a closed pipe into outcomes of its own.
        action = app(args=arguments, prog_name="cot-engine", standalone_mode=False)
        if callable(action):
            if not verbose:
                process.silence_libraries()
            action()
        sys.stdout.flush()
        return action if isinstance(action, int) else 0
    except KeyboardInterrupt as stop:
        _say(*(str(argument) for argument in stop.args or ("Interrupted.",)))
        return INTERRUPTED
    except BrokenPipeError:
        _close_quietly()
        return BROKEN_PIPE
    except Exception as error:
        if verbose:
            traceback.print_exc()
        return _explain(error)


def _explain(error: Exception) -> int:
    """Two lines on stderr: what was wrong, and what to do next."""
    from cot_engine.errors import CotEngineError
    from cot_engine.files.writing import FULL

    if isinstance(error, CotEngineError):
        _say(error.message, error.hint or "See cot-engine --help.")
        return error.exit_code
    if hasattr(error, "format_message"):  # the option parser's own, wherever typer keeps its class
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "cot-engine"
        _say(error.format_message(), f"See {path} --help.")
        return 2
    if type(error).__name__ == "Abort":
        _say("Interrupted.")
        return INTERRUPTED
    if isinstance(error, OSError) and sys.stdout is not None and error.errno in FULL:
        _say(f"The output cannot be written: {error.strerror}.", "Free some space.")
        _close_quietly()
        return 2
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        _say(f"{str(error.filename)!r}: {error.strerror}.", "Check its name and permissions.")
        return 2
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        _say("The name of a file holds a NUL character.", "Give another name.")
        return 2
    _say(
        f"Unexpected {type(error).__name__}: {error}",
        "This is a defect. Re-run with --verbose to see where it happened.",
    )
    return 1


def _say(*lines: str) -> None:
    from cot_engine.errors import readable

    with contextlib.suppress(OSError):  # nobody is listening
        for line in lines:
            if line:
                print(" ".join(readable(line).split()), file=sys.stderr)


def _close_quietly() -> None:
    """Keep Python from writing what is left of stdout at exit, where it would complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
