"""From a question, its pictures and the response to be learnt to token ids, labels and batches.

The prompt's ids are those that the local backend would send (`backends.text.ChatText.turn`), and
the response's are tokenised after them as they stand there, so a model meets in use exactly what
it was trained on. What is learnt is all that follows the prompt, up to and including the token
that ends the turn; the prompt, image tokens and padding never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from cot_engine.backends.local.loading import Loaded
from cot_engine.backends.local.text import FALLBACK, NO_THOUGHT
from cot_engine.backends.models.family import Pixels
from cot_engine.core.grammar import read
from cot_engine.core.stages import Plan
from cot_engine.errors import ModelError

IGNORE = -100
"""The label of a token that is not learnt."""

_PROMPT, _ANSWER = "0cot0text0", "0cot0answer0"
Turns = Sequence[tuple[str, str]]
"""Questions with their responses."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation: `ids` of prompt and response, of which the first `prompt` are the prompt's;
    `images` are its pictures, preprocessed. `asked` are the (start, end) of further questions,
    which are not learnt either."""

    ids: list[int]
    prompt: int
    images: tuple[Pixels, ...]
    asked: tuple[tuple[int, int], ...] = ()

    @property
    def learnt(self) -> int:
        """How many ids are learnt."""
        return len(self.ids) - self.prompt - sum(end - start for start, end in self.asked)

    def cut(self, limit: int) -> Example:
        """The first `limit` ids of it."""
        asked = tuple((start, min(end, limit)) for start, end in self.asked if start < limit)
        return replace(self, ids=self.ids[:limit], asked=asked)


class Encoder:
    """Examples of a loaded model's chat format. Raises ModelError if that format does not keep the
    prompt as it is when the response follows."""

    def __init__(self, loaded: Loaded) -> None:
        self.adapter, self.text = loaded.adapter, loaded.text
        self.tokenizer = loaded.text.tokenizer
        self._around = lru_cache(maxsize=64)(self._surroundings)
        self._between = lru_cache(maxsize=64)(self._seam)
        self._blank = lru_cache(maxsize=4096)(self._expanded)
        self._around(0)
        self._around(1)

    # --- token ids -------------------------------------------------------------------------------

    def prompt_ids(self, question: str, images: Sequence[str]) -> list[int]:
        """`images` are the texts that the pictures expand to in the prompt."""
        return self.text.turn(question, tuple(images))

    def response_ids(self, response: str, images: int) -> list[int]:
        """The ids after the prompt's: what the template puts before the response, the response,
        and the end of the turn."""
        before, closing = self._around(images)
        if before.strip():  # more than the space that belongs to the first word
            return [*self._special(before), *self.text.continuation(response), *closing]
        return [*self.text.continuation(before + response), *closing]

    def example(
        self, question: str, response: str, pictures: Sequence[Any] = (), later: Turns = ()
    ) -> Example:
        """`pictures` are PIL images, in the prompt's order; `later` is asked after the response.
        Raises ModelError where the chat format has no further turns."""
        images = tuple(self.adapter.prepare(picture, "", len(pictures)) for picture in pictures)
        prompt = self.prompt_ids(question, [image.text for image in images])
        ids = [*prompt, *self.response_ids(response, len(images))]
        asked = []
        for at, (more, reply) in enumerate(later, 1):
            start = len(ids)
            ids += self._question_ids(more, len(images), at)
            asked.append((start, len(ids)))
            ids += self.response_ids(reply, len(images))
        return Example(ids, len(prompt), images, tuple(asked))

    def length(
        self,
        question: str,
        response: str,
        sizes: Sequence[tuple[int, int]] = (),
        later: Turns = (),
    ) -> int:
        """Tokens of an example whose pictures have these (width, height), without reading them."""
        texts = [self._blank(size, len(sizes)) for size in sizes]
        total = len(self.prompt_ids(question, texts)) + len(self.response_ids(response, len(sizes)))
        for at, (more, reply) in enumerate(later, 1):
            total += len(self._question_ids(more, len(sizes), at))
            total += len(self.response_ids(reply, len(sizes)))
        return total

    def _question_ids(self, question: str, images: int, turn: int) -> list[int]:
        """The ids between the response before it and the response to a further question."""
        before, after, ended = self._between(images, turn)
        whole = self._special(before + question + after)
        plain = self._special(f"{before}x{after}")
        if self.text._tally(whole) != self.text._tally(plain):  # special tokens written as text
            parts = self._special(before), self.text.continuation(question), self._special(after)
            whole = [token for part in parts for token in part]
        return whole[ended:]

    def _expanded(self, size: tuple[int, int], together: int) -> str:
        from PIL import Image

        return self.adapter.prepare(Image.new("RGB", size), "", together).text

    def _surroundings(self, images: int) -> tuple[str, list[int]]:
        """What the template writes between the prompt and a response, and the ids after it."""
        prompt, whole = self._rendered(images)
        if not whole.startswith(prompt):
            raise ModelError(
                "The chat template writes the question in another way when an answer follows: "
                f"{_unlike(prompt, whole)}.",
                "Such a model would be trained on prompts that it never sees in use. Mend its "
                "chat_template: with add_generation_prompt it must write the beginning of what "
                "it writes for the whole conversation.",
            )
        before, _, after = whole[len(prompt) :].partition(_ANSWER)
        ids = self._special(after)
        ends = [i for i, token in enumerate(ids) if token in self.text.eos]
        if ends:
            return before, ids[: ends[0] + 1]
        end = self.tokenizer.eos_token_id  # the template does not write it, but generation needs it
        return before, [min(self.text.eos) if end is None else end]

    def _seam(self, images: int, turn: int) -> tuple[str, str, int]:
        """What the template writes before and after the `turn`-th further question, and how many
        ids of that are the response's before it, by which its turn ends."""
        around, closing = self._around(images)
        prompt = self._rendered(images)[0]
        whole = self._conversation(images, turn)
        begin, _, rest = whole.partition(_ANSWER)
        for at in range(1, turn + 1):
            before, _, rest = rest.partition(f"{_PROMPT}{at}")
            opening, _, rest = rest.partition(f"{_ANSWER}{at}")
        if begin != prompt + around or not opening.endswith(around):
            raise ModelError(
                "The chat template does not write a second question after the first answer as "
                "they were learnt alone.",
                "Rows of several questions cannot be learnt by this model: give each question a "
                "row of its own, or mend its chat_template.",
            )
        written = self._special(before)[: len(closing)] == closing
        return before, opening.removesuffix(around), len(closing) if written else 0

    def _conversation(self, images: int, turns: int) -> str:
        """A whole conversation of `turns` further questions, "" if the template has none."""
        tag = self.text.image_tag
        prompt = self._rendered(images)[0]
        if prompt == FALLBACK.format(images=f"{tag}\n" * images, text=_PROMPT):
            more = (FALLBACK.format(images="", text=f"{_PROMPT}{n}") for n in range(1, turns + 1))
            turns_said = (f" {text} {_ANSWER}{n}" for n, text in enumerate(more, 1))
            return f"{prompt} {_ANSWER}{''.join(turns_said)}"
        shown = [{"type": "image"}] * images
        for parts in (True, False):
            texts = [_PROMPT, _ANSWER]
            texts += [f"{text}{at}" for at in range(1, turns + 1) for text in (_PROMPT, _ANSWER)]
            said: list[dict[str, Any]] = [
                {
                    "role": ("user", "assistant")[at % 2],
                    "content": [*(shown if at == 0 else []), {"type": "text", "text": text}]
                    if parts
                    else (f"{tag}\n" * images if at == 0 else "") + text,
                }
                for at, text in enumerate(texts)
            ]
            whole = self._apply(said, False)
            if all(whole.count(text) for text in texts) and whole.count(tag) == images:
                return whole
        return ""

    def _special(self, text: str) -> list[int]:
        """The ids of what a template wrote in mid-conversation, special tokens parsed."""
        found = self.tokenizer("a" + text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(found["input_ids"], found["offset_mapping"], strict=True)
        return [token for token, (start, _) in pairs if start >= 1]

    def _rendered(self, images: int) -> tuple[str, str]:
        """The prompt alone, with the assistant's opening, and the whole conversation."""
        tag = self.text.image_tag
        parts = [{"type": "image"}] * images + [{"type": "text", "text": _PROMPT}]
        answer = [{"type": "text", "text": _ANSWER}]
        for user, assistant in ((parts, answer), (f"{tag}\n" * images + _PROMPT, _ANSWER)):
            turns = [{"role": "user", "content": user}]
            prompt = self._apply(turns, True)
            whole = self._apply([*turns, {"role": "assistant", "content": assistant}], False)
            if _PROMPT in prompt and _ANSWER in whole and prompt.count(tag) == images:
                past = self.text.past_thought(prompt)
                start = NO_THOUGHT.sub("", past)
                if start != past and whole.startswith(start):  # many write answers without thoughts
                    whole = past + NO_THOUGHT.sub("", whole[len(start) :], 1)
                return past, whole
        prompt = FALLBACK.format(images=f"{tag}\n" * images, text=_PROMPT)
        return prompt, f"{prompt} {_ANSWER}"

    def _apply(self, turns: list[dict[str, Any]], opening: bool) -> str:
        if not self.text.template:
            return ""
        try:
            return self.tokenizer.apply_chat_template(
                turns,
                chat_template=self.text.template,
                add_generation_prompt=opening,
                enable_thinking=False,
                tokenize=False,
            )
        except Exception:  # a template is a program of the model's maker and may raise anything
            return ""

    # --- batches ---------------------------------------------------------------------------------

    def batch(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """What the model's forward takes, padded on the right: `input_ids` and `labels`
        [rows, longest], and the pictures as the architecture wants them.

        There is no attention mask: a causal model cannot look to the right.
        """
        longest = max(len(e.ids) for e in examples)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(examples), longest), 0 if pad is None else pad)
        labels = torch.full((len(examples), longest), IGNORE)
        for row, example in enumerate(examples):
            tokens = torch.tensor(example.ids)
            ids[row, : len(tokens)] = tokens
            labels[row, example.prompt : len(tokens)] = tokens[example.prompt :]
            for start, end in example.asked:
                labels[row, start:end] = IGNORE
        batch = {"input_ids": ids, "labels": labels}
        if any(example.images for example in examples):
            batch |= self.adapter.stock_inputs(ids, examples)
        return batch


def reworded(response: str, format: str, plan: Plan, answer: str | None = None) -> str:
    """The response as `format` teaches it: "staged" as it is; "no-tags" the stages' texts, a blank
    line between; "direct" the standard answer, if known, else the last stage's text.

    A response without stages is left as it is.
    """
    if format == "staged":
        return response
    contents = read(response, plan, complete=True).contents
    if format == "no-tags":
        return "\n\n".join(text for text in contents.values() if text) or response
    return answer or contents.get(plan.last.tag) or response


def _unlike(prompt: str, whole: str) -> str:
    at = next(
        (i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole)
    )
    start = max(0, at - 20)
    return f"{prompt[start : at + 20]!r} becomes {whole[start : at + 20]!r}"
