"""Finding out what a server can do, by what it does: unknown fields are ignored with a 200, so that
what a server accepts says nothing.

Some twenty small requests, of a few tokens each, as many at a time as do not depend on each other.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cot_engine.backends.server.asking import Asking, all_of
from cot_engine.backends.server.dialect import Dialect, Verdict
from cot_engine.backends.server.messages import Message, conversation
from cot_engine.backends.server.verdicts import SAID, WAYS, Spelling, asked, weighed
from cot_engine.backends.server.written import Written
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import GREEDY, Sampling
from cot_engine.errors import BackendGone, InputError, ModelError, UnknownNameError, shown

_UNKNOWN_CONTEXT = 32_768
_QUESTION = "Write the numbers from one to nine in words, with a comma behind each."
_BEGUN = "one, two, three, four"
_CHOICES = ("1", "2")
_WHICH = "Which number is larger, 1 or 2? Reply with the number alone.\n"
_TEXT = (
    "The picture shows 3 red circles and a <SUMMARY>blue square</SUMMARY>; which of the two "
    "attempts, that of 1995 or the second, is right? Give your reasons, step by step.\n"
)
_HOT = Sampling(2.0, 1.0, 0)
_TOKENS = 12
_WIDE = 2.0
"""How many times as many tokens a byte of another text may take as one of `_TEXT`."""
_SIZES = ((1024, 768), (64, 64))
_COUNTS = (2, 4, 8, 16)


class Probe:
    """One server, while it is found out."""

    def __init__(self, asking: Asking, served: str | None, context: int | None) -> None:
        self.asking, self.served, self.context = asking, served, context

    async def dialect(self) -> Dialect:
        """What it can do. Raises ModelError for a server that is not there, has no such model or
        cannot continue a message, and what else asking it raises."""
        d = await self._named()
        d, first = await self._asked_first(d)
        d = replace(d, start=first.prompt or 0)
        d = replace(d, streams=await self._streams(d))
        d = await self._prefill(d, first)
        (stop, seeds, several), (pictures, picture), per_byte, block, tokenize = await all_of(
            self._writing(d), self._pictures(d), self._per_byte(d), self._block(d),
            self._tokenize(d),
        )  # fmt: skip
        d = replace(
            d,
            stop=stop, seeded=seeds, several=several, pictures=pictures, picture=picture,
            per_byte=per_byte, block=block, tokenize=tokenize,
        )  # fmt: skip
        d = replace(d, verdict=await self._verdict(d))
        return replace(d, notes=tuple(_notes(d, self.asking.line.has_key)))

    # --- who it is -------------------------------------------------------------------------------

    async def _named(self) -> Dialect:
        base = self.asking.line.base_url
        try:
            listed = (await self.asking.value("models")).get("data")
        except BackendGone as error:
            hint = "Is the server running? Its address usually ends in /v1."
            raise ModelError(error.message, hint) from None
        except ModelError as error:
            more = "" if base.endswith("/v1") else f" Do you mean {base}/v1?"
            raise ModelError(error.message, error.hint + more) from None
        entries = [e for e in listed if isinstance(e, dict)] if isinstance(listed, list) else []
        models = {str(e.get("id")): e for e in entries if e.get("id")}
        if self.served is not None and self.served not in models:
            raise UnknownNameError(f"model at {base} called", self.served, models)
        if not models:
            raise ModelError(f"The server at {base} lists no model.", "Wait until it has one.")
        if self.served is None and len(models) > 1:
            names = shown(", ".join(models), 200)
            raise ModelError(
                f"The server at {base} lists {len(models)} models: {names}.",
                f"Say which, behind the address: {base}#served={next(iter(models))}",
            )
        name = self.served or next(iter(models))
        entry = models[name]
        server, version = await self._server(str(entry.get("owned_by")))
        told = entry.get("max_model_len", entry.get("context_length"))
        context = self.context or (told if type(told) is int and told > 0 else _UNKNOWN_CONTEXT)
        return Dialect(name, context, server, version)

    async def _server(self, owner: str) -> tuple[str, str]:
        """Which program it is, and of which version, as far as it says."""
        ways = (("vLLM", "/version", "version"), ("SGLang", "/server_info", "version"))
        for server, path, key in ways:
            if owner.lower() not in (server.lower(), "none", ""):
                continue
            try:
                found = await self.asking.value(path)
            except (ModelError, InputError):
                continue
            if isinstance(found.get(key), str):
                return server, found[key]
        return {"vllm": "vLLM", "sglang": "SGLang"}.get(owner.lower(), ""), ""

    # --- how it is asked -------------------------------------------------------------------------

    def _payload(
        self,
        d: Dialect,
        text: str = _QUESTION,
        prefix: str = "",
        how: Sampling = GREEDY,
        tokens: int = 1,
        pictures: Sequence[Message] = (),
    ) -> dict[str, Any]:
        said = d.common() | d.sampling(how) | d.numbered() | {"max_tokens": tokens}
        return said | conversation(text, pictures, prefix)

    async def _ask(self, payload: dict[str, Any], until: Until | None = None) -> Written:
        until = until or Until()
        return await self.asking.written(payload, lambda: Written(until))

    async def _tried(self, payload: dict[str, Any], until: Until | None = None) -> Written | None:
        """The reply, None where it is refused."""
        try:
            return await self._ask(payload, until)
        except (InputError, ModelError) as error:
            if isinstance(error, BackendGone):
                raise
            return None

    async def _asked_first(self, d: Dialect) -> tuple[Dialect, Written]:
        """The richest way of asking that is not refused, and whether log-probabilities and numbers
        come with it."""
        refused: InputError | None = None
        for way in (
            replace(d, more=True, logprobs=True, ids=True),
            replace(d, more=False, logprobs=True),
            replace(d, more=False),
        ):
            try:
                first = await self._ask(self._payload(way))
            except InputError as error:
                refused = error
                continue
            numbered = bool(first.tokens) and first.tokens[0].id >= 0
            return replace(way, logprobs=bool(first.tokens), ids=numbered), first
        assert refused is not None
        raise ModelError(
            f"The server at {self.asking.line.base_url} takes no simple question: "
            f"{refused.message}",
            refused.hint,
        )

    async def _prefill(self, d: Dialect, first: Written) -> Dialect:
        """Whether it continues a message. One that ignores the flags would begin a new turn behind
        what was written, and nobody would see it: so the tokens are counted that it reads."""
        base = self.asking.line.base_url
        payload = self._payload(d, prefix=_BEGUN)
        plain = {k: v for k, v in payload.items() if k not in _FLAGS}
        try:
            going_on = await self._ask(payload)
            said = ""
        except InputError as error:
            going_on, said = None, f": {error.message}"
        anew = await self._tried(plain)
        counts = [None if w is None else w.prompt for w in (first, going_on, anew)]
        if going_on is not None and None in counts[:2]:
            raise ModelError(
                f"The server at {base} does not count the tokens that it reads, so that nobody "
                "could tell whether it continues a message or begins a new one.",
                "Start it so that its replies have `usage`.",
            )
        start, on, new = counts
        if start is not None and on is not None and on > start and (new is None or on < new):
            return d
        why = said or (
            f": behind a begun reply it reads {on} tokens with the flags and {new} without them"
        )
        raise ModelError(
            f"The server at {base} cannot continue an assistant's message "
            f"(continue_final_message){why}. A search by stages writes each stage behind the ones "
            "before it.",
            "vLLM and SGLang can. `transformers serve`, Ollama and OpenAI's own service cannot.",
        )

    # --- what it writes --------------------------------------------------------------------------

    async def _streams(self, d: Dialect) -> bool:
        way = replace(d, streams=True)
        payload = self._payload(way, tokens=3) | way.streamed()
        pieces = 0

        def heard(_: int) -> None:
            nonlocal pieces
            pieces += 1

        try:
            await self.asking.written(payload, lambda: Written(heard=heard))
        except InputError:
            return False
        return pieces > 0

    async def _writing(self, d: Dialect) -> tuple[Any, bool, Any]:
        """How it stops, and what seeds and n do."""
        hot = self._payload(d, how=_HOT, tokens=_TOKENS)
        two = hot | {"seed": 1, "n": 2}
        written, one, again, other, both = await all_of(
            self._ask(self._payload(d, tokens=_TOKENS)),
            *(self._tried(hot | {"seed": seed}) for seed in (1, 1, 2)),
            self._several(two),
        )
        stop = await self._stop(d, written.text)
        texts = [None if w is None else w.text for w in (one, again, other)]
        seeded = texts[0] is not None and texts[0] == texts[1] != texts[2]
        if len(both) < 2:
            return stop, seeded, "no"
        return stop, seeded, "strided" if both == [texts[0], texts[2]] else "some"

    async def _several(self, payload: dict[str, Any]) -> list[str]:
        """The texts of all choices."""
        try:
            found = await self.asking.value("chat/completions", payload)
        except (InputError, ModelError):
            return []
        choices = found.get("choices")
        messages = [c.get("message", {}) for c in choices or [] if isinstance(c, dict)]
        return [str(m.get("content")) for m in messages if isinstance(m, dict)]

    async def _stop(self, d: Dialect, text: str) -> Any:
        """What is left of a stop string that is surely written: a character of what it wrote
        before, though not the first."""
        at = next((i for i, c in enumerate(text) if i and text.index(c) == i and c.strip()), None)
        if at is None:
            return "kept" if d.server == "vLLM" else "watched"
        until = Until((text[at],))
        way = replace(d, stop="kept")
        payload = self._payload(way, tokens=_TOKENS) | way.stops(until.strings)
        found = await self._tried(payload, until)
        if found is None or found.finish != "stop":
            return "watched"
        if found.text == text[: at + 1]:
            return "kept"
        if found.text == text[:at] and found.reason == text[at]:
            return "named"
        return "watched"

    # --- what it reads ---------------------------------------------------------------------------

    async def _pictures(self, d: Dialect) -> tuple[int, int]:
        """How many pictures it takes at once, and how many tokens the largest one is."""
        start = d.start
        large, small = await all_of(
            *(self._tried(self._payload(d, pictures=[_grey(size)])) for size in _SIZES)
        )
        seen = [w.prompt for w in (large, small) if w is not None and w.prompt is not None]
        tokens = max(seen, default=0) - start
        if small is None or small.prompt is None or small.prompt <= start:
            return 0, 0
        many = await all_of(
            *(self._tried(self._payload(d, pictures=[_grey(_SIZES[1])] * n)) for n in _COUNTS)
        )
        took = [n for n, w in zip(_COUNTS, many, strict=True) if w is not None]
        return max(took, default=1), max(1, tokens)

    async def _per_byte(self, d: Dialect) -> float:
        """Tokens that a byte of text takes, generously."""
        found = await self._ask(self._payload(d, text=_QUESTION + _TEXT))
        own = (found.prompt or 0) - d.start
        return min(1.0, max(0.05, _WIDE * own / len(_TEXT.encode())))

    async def _block(self, d: Dialect) -> int:
        """What divides the tokens that it has cached of prompts that it reads again; 0 if it does
        not say."""
        # Of lengths that no block divides.
        payloads = [self._payload(d, text=(_TEXT * 6)[:end]) for end in (450, 570, 710, 860)]
        await all_of(*map(self._ask, payloads))
        cached = [again.cached for again in await all_of(*map(self._ask, payloads))]
        if None in cached:
            return 0
        return math.gcd(*cached) or 128  # it says, and had none: the largest that vLLM has

    async def _tokenize(self, d: Dialect) -> bool:
        try:
            spelled = await Spelling(self.asking, d).ids("red square")
        except (InputError, ModelError):
            return False
        return len(spelled) > 0

    async def _verdict(self, d: Dialect) -> Verdict:
        """The best way of choosing of which the reply is as it should be."""
        spelling = Spelling(self.asking, d)
        ids: list[int] = []
        if d.tokenize:
            try:
                ids = await spelling.first("", _CHOICES)
            except (InputError, ModelError):
                ids = []
        for way in WAYS:
            if (way in ("token ids", "bias") and not ids) or (way != "text" and not d.logprobs):
                continue
            if way in ("token ids", "choice") and not d.more:
                continue
            if not await self._obeyed(d, way, spelling):
                continue
            payload = self._payload(d, text=_WHICH) | asked(way, d.server, _CHOICES, ids)
            found = await self._tried(payload)
            if found is not None and weighed(way, _CHOICES, ids, found) is not None:
                return way
        raise ModelError(
            f"The server at {self.asking.line.base_url} answers no question between two choices.",
            "Its own log says more.",
        )

    async def _obeyed(self, d: Dialect, way: Verdict, spelling: Spelling) -> bool:
        """Whether what is to make it write a choice does: it is to write a word that nobody would
        write here. The other ways do not make it write anything."""
        if way not in ("choice", "bias"):
            return True
        ids = await spelling.first("", (_ODD,)) if d.tokenize else []
        found = await self._tried(
            self._payload(d, text=_WHICH) | asked(way, d.server, (_ODD,), ids)
        )
        wrote = "" if found is None else found.text.strip()
        return wrote != "" and _ODD.startswith(wrote)


_ODD = "zebra"
_FLAGS = ("continue_final_message", "add_generation_prompt")


def _notes(d: Dialect, key: bool) -> list[str]:
    """What a user is told of how the server is asked."""
    said = [SAID[d.verdict]]
    if not d.logprobs:
        said.append("The server tells no log-probabilities: ties are broken by draw alone.")
    if d.logprobs and not d.ids:
        said.append("The server does not number its tokens: what was written is known as text.")
    if d.stop == "watched":
        said.append("The server is not relied on to stop: what it writes is watched and cut off.")
    if d.stop == "watched" and not d.streams:
        said.append("It does not answer in pieces either: it writes each step to its limit.")
    if not d.more:
        said.append("The server takes no top_k: all tokens are drawn from.")
    if not d.seeded:
        said.append("Seeds do not decide what the server writes: a run cannot be repeated.")
    if not d.block:
        said.append(
            "The server does not say what of a prompt it had cached (vLLM: "
            "--enable-prompt-tokens-details): all of it is counted as read."
        )
    if not d.tokenize:
        said.append(
            "The server has no /tokenize: whatever looks like a special token in a question is "
            "taken apart by a space."
        )
    return said


def _grey(size: tuple[int, int]) -> Message:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, (128, 128, 128)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
