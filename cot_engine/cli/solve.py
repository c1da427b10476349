"""`cot-engine solve`: check everything that is cheap to check, then load the model and search."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cot_engine.errors import ImageError, IncompleteAnswer, InputError, TraceError
from cot_engine.files.outputs import check_outputs
from cot_engine.files.writing import check_writable
from cot_engine.options.config import RunConfig
from cot_engine.options.layers import files_of, load_config
from cot_engine.options.problem import check_question

if TYPE_CHECKING:
    from cot_engine.core.answers import Answer
    from cot_engine.core.events import Heard
    from cot_engine.core.trace import TraceFile
    from cot_engine.images.load import Image
    from cot_engine.options.resolve import Resolved

_INCOMPLETE = "The answer is not complete. {}"
_PICTURES = frozenset(".png .jpg .jpeg .gif .webp .bmp .tif .tiff .avif .heic".split())
STDIN = "-"
MAX_STDIN = 100_000_000
"""Bytes read from stdin. No picture of `images.MAX_PIXELS` that a camera writes takes more."""
_KNOWS = "The bundled model knows only drawn shapes and bar charts; see --model."


def run(
    words: list[str],
    more_images: list[str],
    config_file: str | None,
    flags: dict[str, Any],
    *,
    trace: str | None,
    allow_incomplete: bool,
    dry_run: bool,
    json: bool,
    quiet: bool,
) -> None:
    from cot_engine.cli import process
    from cot_engine.cli.display import make_display
    from cot_engine.engine.facade import BUNDLED, model_path, profile_path
    from cot_engine.judging.profile import Profile
    from cot_engine.options.resolve import checked, resolve

    sources, question = split(words, more_images)
    check_question(question)
    config = load_config(config_file, os.environ, flags)
    call = checked(resolve(Profile.of(profile_path(config.model)), config))
    read = [("the model", model_path(config.model)), *files_of(config_file, os.environ, flags)]
    read += [("the picture", source) for source in sources]
    check_outputs([("--trace", trace)], read)
    images = _load(sources, config)
    if dry_run:
        from cot_engine.cli.needs import dry_run as told

        sizes = [image.pixels.size for image in images]
        told(config, call.plain(len(images)), sizes, json, call.notes)
        return
    if trace is not None:
        hint = "Free some space or choose another place with --trace."
        check_writable(trace, "The trace", TraceError, hint)

    if config.model == BUNDLED:
        process.small_model()
    with make_display(quiet) as display:
        if config.model == BUNDLED and not _chosen(flags):
            display.notice(_KNOWS)
        display.loading(config.model)
        answer, failed = _search(call, images, question, trace, display)
        if answer.incomplete and (allow_incomplete or failed is not None):
            display.notice(_INCOMPLETE.format(answer.incomplete))
    if json:
        _print_json(answer, config, trace, failed)
    else:
        from cot_engine.escape import visible

        print(visible(answer.text))
    sys.stdout.flush()  # a failure to write the answer comes before one to write the trace
    if failed is not None:
        raise failed
    if answer.incomplete and not allow_incomplete:
        raise IncompleteAnswer(
            _INCOMPLETE.format(answer.incomplete),
            "--allow-incomplete accepts such answers: the exit code is then 0, not 4.",
        )


def _chosen(flags: dict[str, Any]) -> bool:
    """Whether the bundled model was named, so that the user knows what it is."""
    return "model" in flags or bool(os.environ.get("COT_ENGINE_MODEL"))


def split(words: list[str], more_images: list[str]) -> tuple[list[str], str]:
    """The images and the question of the command line: one word is a question, two are an image
    and a question. Raises InputError where that is plainly not what was meant."""
    if len(words) > 2:
        raise InputError(
            f"There are {len(words)} arguments, {words[2]!r} being the third.",
            'Put the question in quotes, and further pictures behind --image: solve a.png "How?"',
        )
    first, question = words[0], words[-1]
    if len(words) == 1:
        if _looks_like_picture(question):
            raise InputError(
                f"{question!r} is a picture, and the question is missing.",
                f'Write: cot-engine solve {question} "What do you want to know?"',
            )
        return more_images, question
    if _looks_like_picture(question) and not _looks_like_picture(first):
        raise InputError(
            f"The picture {question!r} stands where the question belongs.",
            "Give the picture first, then the question.",
        )
    return [first, *more_images], question


def _looks_like_picture(word: str) -> bool:
    if word == STDIN:
        return True
    if "\n" in word or len(word) > 1000:
        return False
    path = Path(word)
    if " " not in word and path.suffix.lower() in _PICTURES:
        return True
    try:
        return path.suffix.lower() in _PICTURES and path.is_file()
    except (OSError, ValueError):
        return False


def _load(sources: list[str], config: RunConfig) -> list[Image]:
    if not sources:
        return []
    from cot_engine.images.load import load_image

    if sources.count(STDIN) > 1:
        raise InputError("Two pictures are -, which is stdin.", "It holds one; name a file.")
    return [
        _from_stdin() if source == STDIN else load_image(source, allow_url=config.allow_url)
        for source in sources
    ]


def _from_stdin() -> Image:
    """The picture whose file is on stdin. Raises ImageError."""
    from cot_engine.images.load import load_image

    how = 'Write: cot-engine solve - "What do you want to know?" < photo.jpg'
    if sys.stdin is None or sys.stdin.isatty():
        held = "is closed" if sys.stdin is None else "is the terminal"
        raise ImageError(f"- reads a picture from stdin, which {held}.", how)
    try:
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
    except OSError as error:
        raise ImageError(f"Stdin cannot be read: {error.strerror}.", how) from None
    if not data:
        raise ImageError("Stdin holds no picture: it is empty.", how)
    if len(data) > MAX_STDIN:
        raise ImageError(
            f"Stdin holds more than {MAX_STDIN:,} bytes.", "Save it as a smaller picture."
        )
    try:
        return replace(load_image(data), source="stdin")
    except ImageError as error:
        said = error.message.replace("The image given as bytes", "The image from stdin")
        raise ImageError(said, error.hint) from None


def _search(
    call: Resolved,
    images: list[Image],
    question: str,
    trace: str | None,
    display: Any,
) -> tuple[Answer, TraceError | None]:
    """The answer, and what went wrong with the trace if something did."""
    from cot_engine.core.trace import TraceFile
    from cot_engine.engine.facade import Engine, profile_path
    from cot_engine.options.resolve import resolve

    file: TraceFile | None = None
    folder = profile_path(call.config.model)
    with ExitStack() as stack:
        engine = stack.enter_context(
            Engine.from_pretrained(**call.config.of_engine, on_notice=display.notice)
        )
        if profile_path(call.config.model) != folder:  # it came with a download just now
            call = resolve(engine.profile, call.config)
        if trace is not None:
            file = TraceFile(trace)
        last: list[Heard] = []
        try:
            answer = engine.solve(
                images or None, question, config=call, on_event=_listener(file, display, last)
            )
        except KeyboardInterrupt:
            raise _interrupted(file, last) from None
        finally:
            failed = _close(file)
    return answer, failed


def _listener(file: TraceFile | None, display: Any, last: list[Heard]) -> Callable[[Heard], None]:
    def listen(event: Heard) -> None:
        last[:] = [event]
        if file is not None:
            file(event)
        display(event)

    return listen


def _interrupted(file: TraceFile | None, last: list[Heard]) -> KeyboardInterrupt:
    """The interrupt, with what to tell the user of the trace."""
    from cot_engine.core.events import Failed

    if file is None or not last:
        return KeyboardInterrupt("Interrupted.")
    if not isinstance(last[0], Failed):
        file(Failed("KeyboardInterrupt", "interrupted"))
    return KeyboardInterrupt(
        "Interrupted.", f"The trace so far is in {str(file.path)!r}; cot-engine trace draws it."
    )


def _close(file: TraceFile | None) -> TraceError | None:
    if file is not None:
        try:
            with file:
                pass
        except TraceError as error:
            return error
    return None


def _print_json(
    answer: Answer, config: RunConfig, trace: str | None, failed: TraceError | None
) -> None:
    import json

    from cot_engine.show.summary import summary

    result = summary(answer.trace)
    result |= {"config": config.hash(), "trace": trace if failed is None else None}
    print(json.dumps(result, indent=2))
