"""What the command line does with a process that is its own: its streams, its threads, its end.

`main` calls these before anything is imported or printed. Nothing here is done to a program that
only uses the package.
"""

from __future__ import annotations

import atexit
import codecs
import gc
import locale
import os
import sys
from typing import Any

_YOUNG = 50_000
"""How many objects are made between two looks for garbage. torch and transformers make a million
while they are imported, none of it garbage: a look every 700 takes a sixth of the time."""


_ours = False


def settle() -> None:
    """Settings of the whole process, made before torch is imported.

    Threads that wait for work sleep: by default they spin, and where other programs run on the
    same cores they took five times the processor time of the whole search. What is left at the
    end is given back by the system at once; the collector took a fifth of the time of a short
    command to look at all of it first.
    """
    global _ours
    _ours = True
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    gc.set_threshold(_YOUNG, 10, 10)
    atexit.register(gc.freeze)


def small_model() -> None:
    """Before torch is imported, for one question to the bundled model: it is so small that two
    threads take longer than one, and more of the processor."""
    if _ours:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def silence_libraries() -> None:
    """What PIL, torch and transformers tell developers does not belong between our lines."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore")
    if logging.lastResort is not None:  # what prints the warnings of loggers nobody set up
        logging.lastResort.setLevel(logging.ERROR)


# --- what a terminal can show --------------------------------------------------------------------

_PLAIN = {
    **dict(zip("─━╌╴╶╸╺╼╾═", "-" * 10, strict=True)),
    **dict(zip("│┃║╎╵╷", "|" * 6, strict=True)),
    **dict(zip("╳●▸›▶◆☆×✗✓−–—·•⟨⟩", "x*>>>**xxv---.*<>", strict=True)),
    **dict(zip("“”„‘’‚«»", "\"\"\"'''<>", strict=True)),
    "…": "...",
}


def plain(text: str) -> str:
    """In ASCII: lines as -, | and +, marks as what resembles them, anything else as its code."""
    return "".join(_plain(c) for c in text)


def _plain(character: str) -> str:
    code = ord(character)
    if found := _PLAIN.get(character):
        return found
    if 0x2500 <= code < 0x2580:  # what is left of box drawing are corners and crossings
        return "+"
    if 0x2400 <= code <= 0x2421:  # as `escape.visible` shows a control character
        return "^" + ("?" if code == 0x2421 else chr(code - 0x2400 + 0x40))
    if 0x2800 <= code < 0x2900:  # a spinner's dots
        return "-\\|/"[code % 4]
    return character.encode("ascii", "backslashreplace").decode()


def _lacking(error: UnicodeError) -> tuple[str, int]:
    """For `codecs`: what stands for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return plain(error.object[error.start : error.end]), error.end


def fit_streams() -> None:
    """Make stdout and stderr write whatever is printed, as far as the terminal can show it.

    A stream that is not UTF-8 gets ASCII for what it lacks, and so does one that Python calls
    UTF-8 though the locale is not: with LC_ALL=C Python writes UTF-8 to anything.
    """
    codecs.register_error("cot-engine", _lacking)
    new: dict[str, Any] = {"errors": "cot-engine"}
    if _assumed() and codecs.lookup(locale.getencoding()).name != "utf-8":
        new["encoding"] = "ascii"
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called us: nobody wants to hear it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(**new)


def _assumed() -> bool:
    """Whether nobody asked for UTF-8: Python took it because the locale is C."""
    asked = os.environ.get("PYTHONUTF8") or os.environ.get("PYTHONIOENCODING")
    return bool(sys.flags.utf8_mode) and not asked and "utf8" not in sys._xoptions


def put_document(text: str) -> None:
    """A file's content on stdout: made harmless where a terminal shows it, else UTF-8 whatever the
    locale is, because that is what pages say of themselves and what programs read."""
    from cot_engine.escape import terminal

    if sys.stdout.isatty() or not hasattr(sys.stdout, "buffer"):
        sys.stdout.write(terminal(text))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
