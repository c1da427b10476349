"""Between text and token ids: the chat format around data, detokenising, and finding boundaries."""

from __future__ import annotations

import ctypes
import re
import threading
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cot_engine.core.boundaries import Until
from cot_engine.errors import ModelError, said

FALLBACK = "USER: {images}{text} ASSISTANT:"  # for models without a chat template
_SENTINEL = "0cot0text0"
_PADDED = f" \n\t{_SENTINEL}\t\n "  # by which one sees whether a template trims
NO_THOUGHT = re.compile(r"<(think|thinking)>\s*</\1>\s*")  # an empty one
_THINKS = re.compile(r"<(think|thinking)>(\s*)\Z")
_PATIENCE = 10.0  # seconds for two short prompts
_MEND = (
    "Take chat_template.jinja (or chat_template.json) from the original checkpoint. Without any "
    "template in the folder a plain one is used, and said to be."
)
_ANCHORS = ("\n", ":", "a", "0", ">")
_TAG = re.compile(r"</?[A-Z][A-Z0-9_]*>")
BROKEN = "\ufffd"  # what half a UTF-8 sequence decodes to
CONTEXT = 6  # tokens before a step that decide how its first one is spelled


class ChatText:
    """A tokenizer and a chat format.

    `image_tag` is what the template writes for an image ("<image>", ...). Special tokens written
    in the user's text stay text: the template is rendered around a sentinel, and wherever the
    tokenizer would see a special token that the template did not write, the text is cut in two.

    A model that thinks before it answers gets an empty thought in the prompt (see `past_thought`);
    `thinks` says which, once the template was used. `thought` is that of a family whose models open
    one of themselves.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_tag: str,
        template: str | None,
        eos: set[int],
        thought: str = "",
    ) -> None:
        self.tokenizer = tokenizer
        self._fast = tokenizer.backend_tokenizer  # the library's own wrapper takes ten times longer
        self._fast.no_truncation()
        self._fast.no_padding()
        self.image_tag = image_tag
        self.template = template
        self.eos = frozenset(eos)
        self.thought = thought
        self.thinks = ""
        added = tokenizer.added_tokens_decoder
        special = set(tokenizer.all_special_ids)
        # Stage tags may have been added to a tuned model's vocabulary: those must keep working.
        self.protected = {
            i: token.content
            for i, token in added.items()
            if (token.special or i in special or token.content == image_tag)
            and not _TAG.fullmatch(token.content)
        }
        contents = sorted(self.protected.values(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        self._halves = lru_cache(maxsize=64)(self._render)
        self._specials_of = lru_cache(maxsize=64)(self._count_specials)
        self._hot = lru_cache(maxsize=64)(self._find_hot)
        self.pieces: list[str] = [
            piece or "" for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ]

    # --- text to ids -----------------------------------------------------------------------------

    def turn(self, text: str, images: tuple[str, ...]) -> list[int]:
        """The ids of a whole user turn up to where the assistant begins.

        `images` are the strings an image expands to, as the model's own processor writes them.
        """
        return self.turns((text,), images)[0]

    def turns(self, texts: Sequence[str], images: tuple[str, ...]) -> list[list[int]]:
        """`turn` of each text; what they have in common is tokenised once."""
        before, after, *trims = self._around(images)
        texts = [_trimmed(text, *trims) for text in texts]
        wanted = self._specials_of(before, after)
        found = []
        for text, whole in zip(texts, self._wholes(before, texts, after), strict=True):
            if self._tally(whole) != wanted:
                head, tail = self._encode(before), self._after_anchor(after)
                whole = [*head, *self.continuation(text), *tail]
                if self._tally(whole) != wanted:
                    whole = [*head, *self._spell(text), *tail]
            found.append(whole)
        return found

    def _wholes(self, before: str, texts: Sequence[str], after: str) -> list[list[int]]:
        """The ids of `before` + text + `after` for each text.

        No token reaches across a special one, so of several texts what stands before the last
        special token of `before` is tokenised with the first, where that is seen to be so.
        """
        first = self._encode(before + texts[0] + after)
        if len(texts) == 1:
            return [first]
        cut = max((match.start() for match in self._special.finditer(before)), default=0)
        encode, rest = self._fast.encode, before[cut:]
        own = encode(rest + texts[0] + after, add_special_tokens=False).ids
        head = first[: -len(own)]
        if not cut or head + own != first:
            return [first, *(self._encode(before + text + after) for text in texts[1:])]
        others = (encode(rest + text + after, add_special_tokens=False).ids for text in texts[1:])
        return [first, *(head + ids for ids in others)]

    def places(self, text: str, images: tuple[str, ...]) -> list[tuple[int, int]] | None:
        """Where each id of `turn` stands in `text`: (start, end) in characters, off its ends for
        the chat format. None if the text has special tokens in it and was therefore cut in two."""
        before, after, *trims = self._around(images)
        kept = _trimmed(text, *trims)
        found = self._encoding(before + kept + after)
        if self._tally(found.ids) != self._specials_of(before, after):
            return None
        lead, gone = len(text) - len(text.lstrip()) if trims[0] else 0, len(text) - len(kept)

        def own(at: int, inside: bool) -> int:
            return at + (lead if inside else gone if at >= len(kept) else 0)

        places = [(start - len(before), end - len(before)) for start, end in found.offsets]
        return [
            (own(start, 0 <= start < len(kept)), own(end, 0 < end <= len(kept)))
            for start, end in places
        ]

    def _around(self, images: tuple[str, ...]) -> tuple[str, str, bool, bool]:
        """What stands before and after the user's text, the images expanded, and whether that is
        trimmed on its left and right."""
        before, after, left, right = self._halves(len(images))
        parts = before.split(self.image_tag)
        pairs = zip(images, parts[1:], strict=True)
        return parts[0] + "".join(image + part for image, part in pairs), after, left, right

    def continuation(self, text: str) -> list[int]:
        """The ids of `text` written right after other text; special tokens in it stay text."""
        pieces, at = [], 0
        for match in self._special.finditer(text):
            pieces.append(text[at : match.start() + 1])
            at = match.start() + 1
        pieces.append(text[at:])
        return [i for piece in pieces if piece for i in self._after_anchor(piece)]

    def _spell(self, text: str) -> list[int]:
        """Character by character: no special token can form."""
        return [i for character in text for i in self._after_anchor(character)]

    def _after_anchor(self, text: str) -> list[int]:
        """The ids of `text` in the middle of a line, special tokens parsed.

        Tokenizers of the SentencePiece kind put a space before the first word; an anchor in front,
        dropped again, keeps it away.
        """
        for anchor in _ANCHORS:
            found = self._fast.encode(anchor + text, add_special_tokens=False)
            if any(start < len(anchor) < end for start, end in found.offsets):
                continue  # anchor and text melted into one token: try another anchor
            return [
                i
                for i, (start, _) in zip(found.ids, found.offsets, strict=True)
                if start >= len(anchor)
            ]
        return self._fast.encode(text, add_special_tokens=False).ids

    def encode(self, text: str) -> list[int]:
        """The ids of `text` from the start of the sequence on, special tokens in it as such."""
        return self._encode(text)

    def behind(self, text: str) -> list[int]:
        """The ids of `text` behind other text, special tokens in it as such."""
        return self._after_anchor(text)

    def _encode(self, text: str) -> list[int]:
        """From the start of the sequence on: special tokens parsed, the opening one added."""
        return self._encoding(text).ids

    def _encoding(self, text: str) -> Any:
        bos = self.tokenizer.bos_token
        add = not (bos and text.startswith(bos))
        return self._fast.encode(text, add_special_tokens=add)

    def _tally(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self.protected)

    def _count_specials(self, before: str, after: str) -> Counter[int]:
        return self._tally(self._encode(f"{before}x{after}"))

    # --- the chat format -------------------------------------------------------------------------

    def check(self) -> None:
        """Raise ModelError for a template that does not write a question, without pictures or with
        one, as a model like this can be asked; it is a program, and may never come to its end."""
        failed: list[BaseException] = []

        def render() -> None:
            try:
                for images in (0, 1):
                    self._halves(images)
            except BaseException as error:  # told to whoever waits
                failed.append(error)

        thread = threading.Thread(target=render, daemon=True)
        thread.start()
        thread.join(_PATIENCE)
        if thread.is_alive():
            stop = ctypes.pythonapi.PyThreadState_SetAsyncExc
            stop(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
            raise ModelError(
                f"The model's chat template cannot be used: it has not come to its end in "
                f"{_PATIENCE:g} seconds.",
                _MEND,
            )
        if failed:
            raise failed[0]

    def _render(self, images: int) -> tuple[str, str, bool, bool]:
        """What the template writes before and after the user's text, and whether it trims that on
        its left and on its right. Raises ModelError for a template that cannot be used."""
        if not self.template:
            whole = FALLBACK.format(images=f"{self.image_tag}\n" * images, text=_PADDED)
        else:
            whole = self._written(images)
        before, _, after = whole.partition(_SENTINEL)
        left, _, right = _PADDED.partition(_SENTINEL)
        kept = before.endswith(left), after.startswith(right)
        before, after = before.removesuffix(left), after.removeprefix(right)
        after = self.past_thought(after)
        return before, after, not kept[0], not kept[1]

    def past_thought(self, after: str) -> str:
        """`after`, with the thought closed that it opens: what is forced would stand inside it, and
        what is chosen would be a thought's first word."""
        if opened := _THINKS.search(after):
            name, gap = opened.groups()
            closed = f"\n</{name}>\n\n" if gap else f"</{name}>\n"  # as Qwen and as GLM write it
            self.thinks = f"The chat template opens the reply with <{name}>"
            return after + closed
        if NO_THOUGHT.search(after):
            self.thinks = "The chat template has an empty thought where enable_thinking is false"
        elif self.thought and self.template:
            self.thinks = "The model opens its replies with a thought of itself"
            return after + self.thought
        return after

    def _written(self, images: int) -> str:
        """A user turn with the padded sentinel in it, as the template has it."""
        parts = [{"type": "image"}] * images + [{"type": "text", "text": _PADDED}]
        plain = f"{self.image_tag}\n" * images + _PADDED  # what those of language models want
        why = ""
        for content in (parts, plain):
            try:
                whole = self._apply(content)
            except Exception as error:  # it is a program of the model's maker
                why = why or f"it raises {said(error)}"
                continue
            if repr(_PADDED) in whole or not whole.count(_SENTINEL):
                why = why or "it does not write the user's text"  # but what it was handed
            elif whole.count(_SENTINEL) > 1:
                why = why or "it writes the user's text more than once"
            elif (tags := whole.count(self.image_tag)) != images:
                why = why or f"it writes {self.image_tag} {tags} times for {images} pictures"
            else:
                return whole
        raise ModelError(f"The model's chat template cannot be used: {why}.", _MEND)

    def _apply(self, content: object) -> str:
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self.template,
            add_generation_prompt=True,
            enable_thinking=False,  # read by templates of models that can do both
            tokenize=False,
        )

    # --- ids to text -----------------------------------------------------------------------------

    def _decode(self, ids: Sequence[int]) -> str:
        return self._fast.decode(list(ids), skip_special_tokens=False)

    def added(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add after `before`, spaces as they stand there."""
        context = list(before[-CONTEXT:])
        return self._decode([*context, *ids])[len(self._decode(context)) :]

    def whole(self, before: Sequence[int], ids: Sequence[int]) -> int:
        """How many of `ids` to keep so that the text does not end in half a character."""
        keep = len(ids)
        while keep and len(ids) - keep < 3 and self.added(before, ids[:keep]).endswith(BROKEN):
            keep -= 1
        return len(ids) if self.added(before, ids[:keep]).endswith(BROKEN) else keep

    # --- boundaries ------------------------------------------------------------------------------

    def watch(self, until: Until) -> BoundaryWatch:
        return BoundaryWatch(self, until, *self._hot(until))

    def _find_hot(self, until: Until) -> tuple[bytes, bytes]:
        """Per vocabulary entry: may a stop string end in it; may a sentence's end begin in it."""
        last = {s[-1] for s in until.strings}
        # Byte-level and SentencePiece vocabularies spell printable ASCII as itself.
        plain = all("!" <= c <= "~" for c in last)
        stops = [bool(last) and (not plain or any(c in p for c in last)) for p in self.pieces]
        ends = [
            until.sentence and any(c in p for c in (".", "!", "?", "\n", "Ċ", "<0x0A>"))
            for p in self.pieces
        ]
        return bytes(stops), bytes(ends)


def _trimmed(text: str, left: bool, right: bool) -> str:
    text = text.lstrip() if left else text
    return text.rstrip() if right else text


class BoundaryWatch:
    """Looks for a request's boundary as a row grows; cheap until a telling token comes by."""

    def __init__(self, text: ChatText, until: Until, stops: bytes, ends: bytes) -> None:
        self.text = text
        self.until = until
        self.stops = stops
        self.ends = ends
        self.size = len(stops)

    def telling(self, token: int, pending: bool) -> tuple[bool, bool]:
        """Whether to look now, and whether a sentence may be about to end."""
        if token >= self.size:
            return True, pending
        pending = pending or bool(self.ends[token])
        return bool(self.stops[token]) or pending, pending

    def cut(self, before: Sequence[int], ids: Sequence[int]) -> int | None:
        """How many of `ids` belong to the step, if its boundary lies within them.

        A token across the boundary belongs to it whole.
        """
        written = self.text.added(before, ids)
        end = self.until.end(written)
        if end is None:
            return None
        keep, step = len(ids), written[:end]
        while keep > 1 and self.text.added(before, ids[: keep - 1]).startswith(step):
            keep -= 1
        return keep
