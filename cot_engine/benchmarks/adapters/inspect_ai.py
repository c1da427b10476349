"""The engine as a model provider of Inspect AI, which finds it by an entry point (`inspect_ai`):

    inspect eval task.py --model cot-engine/bundled -M strategy=stage-beam -M n=4
    inspect eval task.py --model cot-engine//models/llava -M budget="2e12 flops"

Its concurrent calls share one engine and the model's batch.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cot_engine import ConfigError, CotEngineError, InputError
from cot_engine.benchmarks.adapters.respondent import (
    Part,
    Reply,
    Respondent,
    importing,
    picture_of,
    question_of,
)

with importing("Inspect AI", "pip install inspect-ai"):
    from inspect_ai import model as inspect_model
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessage,
        ChatMessageAssistant,
        ContentText,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
        modelapi,
    )

_Reasoning: Any = getattr(inspect_model, "ContentReasoning", None)  # older releases have none
_TAKEN = ("temperature", "top_p", "top_k", "seed")
_REFUSED = (
    *("stop_seqs", "num_choices", "best_of", "frequency_penalty", "presence_penalty"),
    *("logit_bias", "logprobs", "top_logprobs", "response_schema"),
)
"""What a caller may ask of a reply that no search can do: refused, not left out in silence."""
_AGAIN = 10_000  # seeds between the same question asked twice in one epoch; more than epochs


@modelapi(name="cot-engine")
class CotEngine(ModelAPI):
    """A provider of Inspect AI. `options` are those of `Respondent`, by `-M`; of a call's config
    temperature, top_p, top_k and seed count, and max_tokens is a budget of new tokens.

    The epochs of a sample are drawn with the seeds that follow; what is asked again in one, too.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as the base class has it
        **options: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if base_url is not None:
            raise ConfigError(
                f"model_base_url is {base_url!r}.",
                f"A server's address is the model: --model cot-engine/{base_url} .",
            )
        self.respondent = Respondent({"model": model_name, **options})
        self._times: Counter[tuple[Any, ...]] = Counter()

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig
    ) -> ModelOutput:
        """The CONCLUSION as the completion, the stages before it as its reasoning, everything else
        in the metadata. Raises CotEngineError for a question without an answer, which Inspect makes
        the sample's error."""
        if tools:
            raise InputError("The task has tools.", "There are none in a search: leave them out.")
        options = self._options(config)
        pictures, question = question_of([(m.role, _parts(m)) for m in input])
        options["seed"] = self._seed(options, question)
        reply = await self.respondent.aask(pictures, question, **options)
        if reply.error:
            raise CotEngineError(reply.error)
        return self._output(reply)

    def _options(self, config: GenerateConfig) -> dict[str, Any]:
        for name in _REFUSED:
            value = getattr(config, name, None)
            if value not in (None, False) and not (name == "num_choices" and value == 1):
                raise ConfigError(f"{name} is {value!r}.", "A search cannot do that: leave it out.")
        options = {key: value for key in _TAKEN if (value := getattr(config, key)) is not None}
        if config.max_tokens is not None:
            if self.respondent.config.budget is not None:
                raise ConfigError(
                    "max_tokens stands beside the budget, which it is one of.",
                    "Give one of them.",
                )
            options["budget"] = f"{config.max_tokens} new tokens"
        return options

    def _seed(self, options: dict[str, Any], question: str) -> int:
        sample, epoch = _sample()
        seed = int(options.get("seed", self.respondent.config.seed)) + epoch - 1
        again = self._times[sample, epoch, question]
        self._times[sample, epoch, question] += 1
        return seed + again * _AGAIN

    def _output(self, reply: Reply) -> ModelOutput:
        assert reply.answer is not None  # else there is an error
        answer, name = reply.answer, f"cot-engine/{self.model_name}"
        before = answer.chain.text.rpartition(f"<{answer.trace.started.plan.last.tag}>")[0].strip()
        content: list[Any] = [_Reasoning(reasoning=before)] if before and _Reasoning else []
        content.append(ContentText(text=reply.text))
        total = answer.total
        return ModelOutput(
            model=name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=content, source="generate"),
                    stop_reason="stop" if answer.complete else "max_tokens",
                )
            ],
            usage=ModelUsage(
                input_tokens=total.prefilled,
                output_tokens=total.decoded,
                total_tokens=total.tokens,
                input_tokens_cache_read=total.cached,
            ),
            time=answer.seconds,
            metadata=reply.columns,
        )

    def max_connections(self) -> int:
        """As many as are searched at once."""
        return self.respondent.config.in_flight

    def connection_key(self) -> str:
        return f"cot-engine/{self.model_name}"

    async def aclose(self) -> None:
        self.respondent.close()


def _sample() -> tuple[Any, int]:
    """The sample that asks, and its epoch; (None, 1) outside of an eval."""
    from inspect_ai.solver._task_state import sample_state

    state = sample_state()
    return (None, 1) if state is None else (state.sample_id, state.epoch)


def _parts(message: ChatMessage) -> list[Part]:
    if isinstance(message.content, str):
        return [message.content]
    return [part for each in message.content if (part := _part(each)) is not None]


def _part(content: Any) -> Part | None:
    if content.type == "text":
        return str(content.text)
    if content.type == "image":
        return picture_of(content.image)
    if content.type == "reasoning":  # of an earlier reply: its conclusion stands beside it
        return None
    raise InputError(f"A message has a part of the type {content.type}.", "It has no words.")
