"""Is a data set fit to be trained on? Every row is read once, its pictures are decoded beside it.

What is looked for, how severe it is and what to do about it is in CHECKS; the rules on leaked
answers are in `leaks.py`. A row with an error is bad, the others are good.

Memory is bounded by the number of rows, not their size: of each row its id, its line and three
hashes of 8 bytes are kept (about 0.7 KB with Python's tables), of findings the first MOST_KEPT, and
of pictures as many as there are threads, each decoded, hashed and let go.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from cot_engine.core.grammar import FAULTS, read
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.errors import ImageError, InputError, UnknownNameError, shown
from cot_engine.images.load import load_image
from cot_engine.training.leaks import leaks, pasted, words
from cot_engine.training.row import MARKER, standard_answer, unlearnable
from cot_engine.training.rows import BadRow, TrainingRow, numbered_rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Severity = Literal["error", "warning", "notice"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "notice")

_MILD: dict[str, Severity] = {"stray": "warning", "echo": "warning"}
# A reply is read as finished, so it cannot have ended inside a stage.
_STAGED = {
    name: (_MILD.get(name, "error"), about.partition(";")[0])
    for name, (_, about) in FAULTS.items()
    if name != "ended"
}
CHECKS: dict[str, tuple[Severity, str]] = {
    "row": ("error", "a line that is no row"),
    "no-question": ("error", "a question with nothing in it"),
    **_STAGED,
    "unknown-tag": ("warning", "a tag of no stage of the plan"),
    "image-missing": ("error", "a picture that is not there"),
    "image-unreadable": ("error", "a picture that cannot be decoded or is beyond a limit"),
    "image-outside": ("warning", "a picture outside the image folder"),
    "image-marker": ("error", f"{MARKER} where no picture belongs, or as often as there are none"),
    "turns": ("error", "turns that are not question and reply, one after the other"),
    "caption-unasked": ("warning", "a picture described where there is none"),
    "answer-stated": ("error", "an early stage that states the answer"),
    "answer-early": ("error", "an early stage that holds the whole conclusion"),
    "answer-hinted": ("warning", "an early stage that mentions a short conclusion"),
    "answer-in-caption": ("warning", "a description that holds the whole conclusion"),
    "answer-given": ("error", "a response that speaks of an answer it was given"),
    "contradicted": ("warning", "a conclusion that is not what the reasoning comes to"),
    "unsupported": ("notice", "a short conclusion that the reasoning never mentions"),
    "question-pasted": ("warning", "a stage that holds the whole question"),
    "same-id": ("error", "an id that an earlier row has"),
    "same-question": ("warning", "an earlier row's picture and question"),
    "same-response": ("notice", "an earlier row's response, but for case and punctuation"),
    "encoding": ("warning", "text that was decoded wrongly, or control characters"),
    "special-token": ("error", "text that the tokenizer reads as a token of its own"),
    "too-long": ("error", "more tokens than are allowed"),
    "length": ("notice", "a response far longer or shorter than is usual here"),
}
"""Every check: its severity, and what a row that it finds has. The faults are those of `stages`."""

MOST_KEPT = 100_000
"""Findings kept whole; of more, only the number is."""
OUTLIER = 4
"""A response is unusual if it has more than 4 times the median's characters, or less than 1/4."""
_FEWEST = 20  # rows from which a median says what is usual
_AHEAD = 8  # rows read ahead for each thread
_RECENT = 4096  # pictures whose digest is remembered: the rows of one stand close together
_HINTED = 20  # missing pictures for which their folder is searched for a similar name

_TAG = re.compile(r"</?\s*([A-Z][A-Z0-9_]{2,31})\s*>")
_GIVEN = re.compile(
    r"\b(?:(?:standard|reference|gold(?:en)?|ground[- ]truth|provided|given) answer"
    r"\b(?! (?:choice|option|key|sheet|box|space)s?\b)"
    r"|I (?:was|am|have been) (?:given|told|shown|provided with) the (?:\w+ )?answer\b"
    r"|according to the (?:\w+ )?answer\b)",
    re.IGNORECASE,
)
_JUNK = (
    (re.compile("�"), "a replacement character (U+FFFD)"),
    (re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"), "a control character"),
    (re.compile("Ã[\u0080-\u00bf]|â€|Â[\u00a0-\u00bf]"), "UTF-8 that was read as Latin-1"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found in one row: `check` is a key of CHECKS, `line` counts from 1, `id` is
    "" for a line that is no row, `said` names the value and where it helps what to do."""

    line: int
    id: str
    check: str
    said: str

    @property
    def severity(self) -> Severity:
        return CHECKS[self.check][0]


@dataclass(slots=True)
class Lengths:
    """Of all responses: characters, and tokens (question and response, without chat template and
    picture) where there was a tokenizer; `limit` is the most tokens allowed."""

    characters: array[int] = field(default_factory=lambda: array("L"))
    tokens: array[int] = field(default_factory=lambda: array("L"))
    limit: int | None = None


@dataclass(slots=True)
class DataReport:
    """What was found. `rows` counts every row and every line that is none, `bad` those with an
    error; `counts` are rows by check; `findings` the first MOST_KEPT, and `left_out` how many more
    there were."""

    rows: int = 0
    bad: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0
    lengths: Lengths = field(default_factory=Lengths)

    @property
    def good(self) -> int:
        return self.rows - self.bad

    def add(self, found: list[Finding]) -> None:
        """Count the findings of one row, or of the whole set at its end."""
        self.counts.update(name for _, name in {(each.line, each.check) for each in found})
        room = MOST_KEPT - len(self.findings)
        self.findings += found[:room]
        self.left_out += len(found[room:]) if room < len(found) else 0


OnRow = Callable[[int, TrainingRow | BadRow, list[Finding]], None]


def check(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    plan: Plan = DEFAULT_PLAN,
    tokenizer: Tokenizer | None = None,
    max_tokens: int | None = None,
    on_row: OnRow | None = None,
    threads: int | None = None,
) -> DataReport:
    """Check a data set (see `rows.py` for its format), all rows in order.

    `images` is the folder that pictures are relative to: by default the data's own. `plan` names
    the stages; one that needs an image is not asked for where there is none. `on_row` is called
    with each line's number, what stands there and its findings, all but "length", which is known
    at the end only. Raises InputError if the file or the folder cannot be read or holds no rows.
    """
    path = Path(path)
    folder = path.parent if images is None else Path(images)
    if images is not None and not os.path.isdir(folder):
        what = "is not a folder" if os.path.exists(folder) else "does not exist"
        raise InputError(f"The image folder {str(folder)!r} {what}.", "Name another one.")
    if max_tokens is not None and (tokenizer is None or max_tokens < 1):
        said = "has no tokenizer to count with" if tokenizer is None else "is not above 0"
        raise InputError(f"The limit of {max_tokens} tokens {said}.", "Give a model and a number.")
    checker = _Checker(plan, tokenizer, max_tokens)
    report, ids, lines = DataReport(), [], array("L")
    report.lengths.limit = max_tokens
    threads = threads or min(16, (os.cpu_count() or 1) + 2)
    for line, row, pictured in _pictured(path, folder, threads):
        found = checker.row(line, row, pictured, report.lengths)
        report.rows += 1
        report.bad += any(each.severity == "error" for each in found)
        report.add(found)
        if isinstance(row, TrainingRow):
            ids.append(row.id)
            lines.append(line)
        if on_row is not None:
            on_row(line, row, found)
    if not report.rows:
        raise InputError(f"{str(path)!r} holds no rows.", "Give JSONL, one row a line.")
    report.add(_outliers(ids, lines, report.lengths.characters))
    return report


def load_tokenizer(model: str) -> Tokenizer:
    """The tokenizer of a model's folder, hub name or "bundled". Raises ModelError, InputError."""
    from tokenizers import Tokenizer

    from cot_engine.backends.local.loading import find_folder
    from cot_engine.engine.facade import model_path

    file = Path(model_path(model)).expanduser() / "tokenizer.json"
    if not file.is_file():  # a folder of a tokenizer alone will do
        file = find_folder(model_path(model)) / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exceptions
        raise InputError(
            f"The tokenizer {str(file)!r} cannot be read: {error}.",
            "Save it with save_pretrained of a fast tokenizer.",
        ) from None


# --- one row -------------------------------------------------------------------------------------


class _Checker:
    """Checks row after row; remembers hashes of what must not come twice."""

    def __init__(self, plan: Plan, tokenizer: Tokenizer | None, max_tokens: int | None) -> None:
        self.plan = plan
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        # Without a picture a stage that needs one is not asked for, and read where it stands.
        self.blind = Plan(tuple(replace(s, optional=s.optional or s.needs_image) for s in plan))
        self.tags = {stage.tag for stage in plan}
        self.ids: dict[int, int] = {}
        self.questions: dict[int, int] = {}
        self.responses: dict[int, int] = {}
        self.special: dict[str, None] = {}
        if tokenizer is not None:
            added = tokenizer.get_added_tokens_decoder().values()
            self.special = dict.fromkeys(each.content for each in added if each.special)

    def row(
        self, line: int, row: TrainingRow | BadRow, pictured: _Pictured, lengths: Lengths
    ) -> list[Finding]:
        if isinstance(row, BadRow):
            return [Finding(line, "", "row", f"{row.said} {row.hint}")]
        found = [*self._texts(row), *pictured.found, *self._again(line, row, pictured.digest)]
        lengths.characters.append(sum(len(response) for _, response in row.turns))
        if self.tokenizer is not None:
            tokens = sum(
                len(self.tokenizer.encode(text, add_special_tokens=False).ids)
                for turn in row.turns
                for text in turn
            )
            lengths.tokens.append(tokens)
            if self.max_tokens is not None and tokens > self.max_tokens:
                said = f"It has {tokens:,} tokens; the limit is {self.max_tokens:,}."
                found.append(("too-long", said))
        return [Finding(line, row.id, name, said) for name, said in found]

    def _texts(self, row: TrainingRow) -> Iterator[tuple[str, str]]:
        yield from unlearnable(row)
        for turn, (question, response) in enumerate(row.turns, 1):
            standard = standard_answer(row) if turn == 1 else None
            for name, said in self._turn(question, response, bool(row.images), standard or ""):
                yield name, said if turn == 1 else f"Question {turn}: {said}"

    def _turn(
        self, question: str, response: str, pictured: bool, standard: str
    ) -> Iterator[tuple[str, str]]:
        plan = self.plan if pictured else self.blind
        if not question.strip():
            yield "no-question", "The human turn asks nothing."
        reading = read(response, plan, complete=True)
        faults: dict[str, list[str]] = {}
        for fault in reading.faults:
            name, _, tag = fault.partition(":")
            faults.setdefault(name, []).append(tag)
        for name, tags in faults.items():
            yield name, f"{', '.join(dict.fromkeys(tags))}."
        yield from self._tags(response)
        described = [s.tag for s in self.plan if s.needs_image and s.tag in reading.contents]
        if not pictured and described:
            yield "caption-unasked", f"{described[0]}, but the row has no image."
        for where, text in (("question", question), ("response", response)):
            yield from self._junk(where, text)
        yield from leaks(reading.contents, plan, question, standard)
        yield from pasted(reading.contents, question)
        given = _GIVEN.search(response)
        if given and given[0].casefold() not in question.casefold():
            yield "answer-given", f"It says {given[0]!r}."

    def _tags(self, response: str) -> Iterator[tuple[str, str]]:
        for tag in dict.fromkeys(_TAG.findall(response)):
            if tag not in self.tags:
                hint = UnknownNameError("stage", tag, self.tags).hint
                yield "unknown-tag", f"<{tag}>. {hint}"

    def _junk(self, where: str, text: str) -> Iterator[tuple[str, str]]:
        for pattern, kind in _JUNK:
            if match := pattern.search(text):
                around = text[max(0, match.start() - 10) : match.end() + 10]
                yield "encoding", f"The {where} holds {kind}: {around!r}."
        for token in self.special:
            if token in text and token != MARKER:
                yield "special-token", f"The {where} holds {token!r}."

    def _again(self, line: int, row: TrainingRow, digest: str) -> Iterator[tuple[str, str]]:
        if first := _seen(self.ids, line, row.id):
            yield "same-id", f"Line {first} has the id {shown(row.id)} too."
        asked = "\n".join(" ".join(q.casefold().split()).rstrip("?.! ") for q, _ in row.turns)
        again = _seen(self.questions, line, f"{digest}\n\n{asked}")
        same = _seen(self.responses, line, "\n".join(words(r) for _, r in row.turns))
        if again:
            yield "same-question", f"Line {again} asks the same of the same picture."
        elif same:
            yield "same-response", f"Line {same} has this response too."


def _seen(before: dict[int, int], line: int, text: str) -> int:
    """The line that had this text first; 0 if this is it."""
    key = hashlib.blake2b(text.encode(), digest_size=8).digest()
    first = before.setdefault(int.from_bytes(key), line)
    return first if first != line else 0


def _outliers(ids: list[str], lines: array[int], characters: array[int]) -> list[Finding]:
    if len(characters) < _FEWEST:
        return []
    usual = median(characters)
    return [
        Finding(line, id, "length", f"{n:,} characters; the median is {usual:,.0f}.")
        for line, id, n in zip(lines, ids, characters, strict=True)
        if n > OUTLIER * usual or n * OUTLIER < usual
    ]


# --- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pictured:
    """What was found about pictures, and the digest of their pixels: of one that cannot be read its
    name, "" where there is none."""

    found: tuple[tuple[str, str], ...] = ()
    digest: str = ""


def _pictured(
    path: Path, folder: Path, threads: int
) -> Iterator[tuple[int, TrainingRow | BadRow, _Pictured]]:
    """Every row in order, with what is known of its picture: decoded in threads, a window of rows
    ahead of the one that is given out. A picture of several rows near each other is read once."""
    recent: OrderedDict[str, Future[_Pictured]] = OrderedDict()
    waiting: deque[tuple[int, TrainingRow | BadRow, list[Future[_Pictured]]]] = deque()
    look = _Looker(folder)
    pool = ThreadPoolExecutor(threads, "picture")

    def give() -> tuple[int, TrainingRow | BadRow, _Pictured]:
        line, row, futures = waiting.popleft()
        found = [future.result() for future in futures]
        every = tuple(fault for one in found for fault in one.found)
        return line, row, _Pictured(every, "\n".join(one.digest for one in found))

    try:
        for line, row in numbered_rows(path):
            futures = []
            for name in row.images if isinstance(row, TrainingRow) else ():
                futures.append(recent.get(name) or pool.submit(look, name))
                recent[name] = futures[-1]
                recent.move_to_end(name)
                if len(recent) > _RECENT:
                    recent.popitem(last=False)
            waiting.append((line, row, futures))
            if len(waiting) > threads * _AHEAD:
                yield give()
        while waiting:
            yield give()
    finally:
        pool.shutdown(cancel_futures=True)


class _Looker:
    """Decodes pictures; used by several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.missing = 0  # about: two threads may count at once, which only moves the limit

    def __call__(self, name: str) -> _Pictured:
        found: list[tuple[str, str]] = []
        if "://" in name:
            said = f"{shown(name)} is an address: download it, and give a path."
            return _Pictured((("image-missing", said),), name)
        if os.path.isabs(name) or ".." in Path(name).parts:
            found.append(("image-outside", f"{shown(name)}: write it relative to the folder."))
        path = self.folder / name
        there = os.path.exists(path)
        if not there:
            self.missing += 1
            # Only so often: a similar name is looked for among all names of a folder.
            if self.missing > _HINTED:
                said = f"The image {shown(str(path))} does not exist."
                return _Pictured((*found, ("image-missing", said)), name)
        try:
            return _Pictured(tuple(found), load_image(path).digest)
        except ImageError as error:
            kind = "image-unreadable" if there else "image-missing"
            return _Pictured((*found, (kind, str(error))), name)
