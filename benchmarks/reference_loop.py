"""Stage-level beam search as the published script runs it, on plain transformers `generate`.

One sequence at a time; the picture and everything before it are computed again for every candidate
and every verdict; whether to stop is found out by decoding all that there is after every token; a
verdict is written out. Where the script leaves a choice, the quicker one is taken: the picture is
resized and normalised once per problem, a stage goes on from the winner's token ids instead of
tokenising its text again, a verdict is one reply of 30 tokens (the script lets it write up to
2,048), a question is asked in one order only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from cot_engine.core.chain import Chain, Step
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Sampling
from cot_engine.core.stages import Plan, Stage
from cot_engine.judging import prompts
from cot_engine.judging.judges import RationaleJudge

VERDICT_TOKENS = 30


@dataclass
class Work:
    """What was done: calls of `generate`, and tokens in and out of them."""

    candidates: int = 0
    matches: int = 0
    encodes: int = 0
    prefilled: int = 0
    written: int = 0  # by candidates
    judged: int = 0  # by verdicts


class StopOnString(StoppingCriteria):
    """Stops once the text of the whole sequence ends with `stop`."""

    def __init__(self, tokenizer: Any, stop: str) -> None:
        self.tokenizer = tokenizer
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> bool:
        return self.tokenizer.decode(input_ids[0], skip_special_tokens=True).endswith(self.stop)


class ReferenceLoop:
    """`model` and `processor` as transformers gives them; `mode` as in the engine."""

    def __init__(
        self, model: Any, processor: Any, plan: Plan, mode: str, sampling: Sampling | None = None
    ) -> None:
        self.model = model
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.plan = plan
        self.mode = mode
        self.sampling = sampling or Sampling()

    @torch.inference_mode()
    def solve(self, problem: Problem, n: int, seed: int = 0) -> tuple[str, Work]:
        """The text of the winning chain, and the work that it took."""
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        work = Work()
        plan = self.plan.fit(len(problem.images))
        turn = prompts.answer_prompt(problem, plan, self.mode, "normal")
        inputs = self.inputs(turn.text, problem)
        prompt = inputs["input_ids"].shape[1]
        ids = inputs["input_ids"]
        for stage in plan:
            if self.mode == "prompted":
                gap = "" if ids.shape[1] == prompt else "\n\n"
                ids = self.followed(ids, gap + stage.open)
            start = ids.shape[1]
            candidates = [self.candidate(inputs, ids, stage, work) for _ in range(n)]
            done = self.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True)
            while len(candidates) > 1:
                first = candidates.pop(int(rng.integers(len(candidates))))
                second = candidates.pop(int(rng.integers(len(candidates))))
                texts = [self.tokenizer.decode(c[0, start:]) for c in (first, second)]
                better = self.verdict(problem, stage, done, texts, work, rng)
                candidates.append((first, second)[better])
            ids = candidates[0]
        return self.tokenizer.decode(ids[0, prompt:], skip_special_tokens=True), work

    def inputs(self, text: str, problem: Problem) -> dict[str, torch.Tensor]:
        """The model's inputs for one user turn, from its own chat template and processor."""
        content = [{"type": "image"}] * len(problem.images) + [{"type": "text", "text": text}]
        rendered = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        images = [image.pixels for image in problem.images] or None
        made = self.processor(
            images=images, text=rendered, add_special_tokens=False, return_tensors="pt"
        )
        made = made.to(self.model.device)
        made["pixel_values"] = made["pixel_values"].to(self.model.dtype)
        return dict(made)

    def followed(self, ids: torch.Tensor, text: str) -> torch.Tensor:
        more = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        return torch.cat([ids, more.to(ids.device)], dim=1)

    def candidate(
        self, inputs: dict[str, torch.Tensor], ids: torch.Tensor, stage: Stage, work: Work
    ) -> torch.Tensor:
        """One sampled continuation of `ids` to the end of the stage."""
        s = self.sampling
        stop = StopOnString(self.tokenizer, stage.close)
        new = self.generate(
            inputs, ids, work, max_new_tokens=stage.length, do_sample=True,
            temperature=s.temperature, top_p=s.top_p, top_k=s.top_k,
            stopping_criteria=StoppingCriteriaList([stop]),
        )  # fmt: skip
        work.candidates += 1
        work.written += new.shape[1] - ids.shape[1]
        closed = self.tokenizer.decode(new[0], skip_special_tokens=True).endswith(stage.close)
        return new if closed else self.followed(new, stage.close)

    def verdict(
        self, problem: Problem, stage: Stage, done: str, texts: list[str], work: Work, rng: Any
    ) -> int:
        """0 or 1: the better one, in writing. An unreadable reply is decided by a coin."""
        before = Chain(steps=(Step(done, (), "", 0.0, 0, "stop"),))
        so_far = prompts.since(before, 0, self.plan) if done else ""
        head = prompts.judge_head(
            problem, problem.images, so_far, stage.question, prompts.REPLY_RATIONALE
        )
        first, second = (t.replace(stage.open, "").replace(stage.close, "").strip() for t in texts)
        inputs = self.inputs(head.text + prompts.judge_tail(first, second), problem)
        ids = inputs["input_ids"]
        new = self.generate(
            inputs, ids, work, do_sample=False,
            min_new_tokens=VERDICT_TOKENS, max_new_tokens=VERDICT_TOKENS,
        )  # fmt: skip
        work.matches += 1
        work.judged += new.shape[1] - ids.shape[1]
        reply = self.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        outcome = RationaleJudge.parse(reply).outcome
        return int(rng.integers(2)) if outcome == "tie" else int(outcome == "second")

    def generate(
        self, inputs: dict[str, torch.Tensor], ids: torch.Tensor, work: Work, **options: Any
    ) -> torch.Tensor:
        """`generate` on `ids`, which begin with the prompt in `inputs`."""
        inputs = dict(inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
        more = ids.shape[1] - inputs.get("cross_attention_mask", ids).shape[1]
        if more:  # Mllama: what was written sees the pictures as the prompt's last token does
            mask = inputs["cross_attention_mask"]
            inputs["cross_attention_mask"] = torch.cat(
                [mask, mask[:, -1:].repeat(1, more, 1, 1)], 1
            )
        work.encodes += "pixel_values" in inputs
        work.prefilled += ids.shape[1]
        return self.model.generate(**inputs, use_cache=True, **options)
