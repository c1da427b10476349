"""What a server can do and how it wants to be asked, as its probe found it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cot_engine.core.requests import Sampling

Verdict = Literal["token ids", "choice", "bias", "top", "text"]
"""How a choice is weighed, the best first: by the log-probabilities of its token, asked for by
number; by those among the choices alone, of which one must be written; by those behind a bias for
their tokens; by those of the likeliest tokens, whatever they are; by what is written."""

Task = Literal["chat", "pooling", "classify", "score", "rerank"]
"""What a server is asked for: to write, or for numbers."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server takes. `server` and `version` are what it says it is ("" where it does not),
    `model` what it calls the model, of `context` tokens (prompt and reply).

    `more`: it takes vLLM's and SGLang's own fields. `stop`: it keeps a stop string in the text, or
    names the one it met, or must be watched. `seeded`: a seed decides what is sampled. `several`:
    n=2 with a seed gives the texts of that seed and the next ("strided"), two others, or no two.
    `streams`: it answers in pieces. `logprobs`, `ids`: each token has its log-probability, its
    number. `verdict` is how it is asked to choose. `pictures` fit into one message. `block`: it
    says what of a prompt it had cached, which is whole blocks of so many tokens (0: it does not
    say). `tokenize`: it tells the tokens of a text. `start` are the tokens of a short question,
    `per_byte` those that a byte of text takes at most, `picture` those of the largest picture that
    was tried.
    """

    model: str
    context: int
    server: str = ""
    version: str = ""
    more: bool = True
    stop: Literal["kept", "named", "watched"] = "watched"
    seeded: bool = False
    several: Literal["strided", "some", "no"] = "no"
    streams: bool = False
    logprobs: bool = False
    ids: bool = False
    verdict: Verdict = "text"
    pictures: int = 0
    block: int = 0
    tokenize: bool = False
    start: int = 0
    per_byte: float = 1.0
    picture: int = 0
    notes: tuple[str, ...] = field(default=())

    def plain(self) -> dict[str, Any]:
        """As values of JSON."""
        return asdict(self) | {"cached": self.block > 0, "notes": list(self.notes)}

    def told(self) -> dict[str, str]:
        """The same in words, by what each is about."""
        program = " ".join(filter(None, (self.server, self.version)))
        stops = {
            "kept": "it stops at strings and keeps them",
            "named": "it stops at strings and names the one that it met",
            "watched": "not relied on: what it writes is watched, and cut off by us",
        }
        several = {
            "strided": "n with a seed gives the texts of that seed and the next ones",
            "some": "n gives several texts",
            "no": "n is ignored",
        }
        verdicts = {
            "token ids": "log-probabilities of the choices' tokens (logprob_token_ids)",
            "choice": "log-probabilities among the choices (structured output)",
            "bias": "log-probabilities behind a bias (logit_bias)",
            "top": "the likeliest tokens' log-probabilities (top_logprobs)",
            "text": "by what is written; there are no log-probabilities",
        }
        numbered = ", and its number" if self.ids else "; the tokens' numbers are not told"
        count = f"{self.pictures} at once, {self.picture:,} tokens for 1024x768"
        return {
            "server": program or "does not say what it is",
            "model": f"{self.model}, {self.context:,} tokens of prompt and reply",
            "prefill": "it continues a begun reply",
            "stop": stops[self.stop],
            "seeds": ("they decide" if self.seeded else "they do not decide")
            + f" what is written; {several[self.several]}",
            "verdicts": verdicts[self.verdict],
            "tokens": f"each with its log-probability{numbered}" if self.logprobs else "not told",
            "pictures": count if self.pictures else "it takes none",
            "pieces": "it answers in pieces" if self.streams else "it answers at once only",
            "cache": f"told, in blocks of {self.block}" if self.block else "not told",
            "tokenizer": "/tokenize is there" if self.tokenize else "/tokenize is not there",
            "fields": "vLLM's and SGLang's own too" if self.more else "OpenAI's alone",
        }

    # --- how it is asked -------------------------------------------------------------------------

    def sampling(self, how: Sampling) -> dict[str, Any]:
        """How tokens are drawn. Said in full: what is left out, a server takes from the model's
        own files."""
        drawn: dict[str, Any] = {"temperature": how.temperature, "top_p": how.top_p}
        if self.more:
            drawn["top_k"] = how.top_k or -1
            drawn |= {"min_p": 0.0, "repetition_penalty": 1.0}
        return drawn

    def common(self) -> dict[str, Any]:
        """What every request says."""
        said: dict[str, Any] = {"model": self.model}
        if self.more:
            said["chat_template_kwargs"] = {"enable_thinking": False}
        if self.server == "SGLang":
            said |= {"separate_reasoning": False}
        return said

    def of_search(self, salt: str) -> dict[str, Any]:
        """What tells a search apart from others. Its own part of the server's cache: what it costs
        then does not depend on what ran before or beside it. A router keeps it on one replica."""
        return {"cache_salt": salt, "session_id": salt} if self.server == "vLLM" else {}

    def streamed(self) -> dict[str, Any]:
        """To answer in pieces, with what was counted so far where it does that."""
        if not self.streams:
            return {}
        options = {"include_usage": True} | ({"continuous_usage_stats": True} if self.more else {})
        return {"stream": True, "stream_options": options}

    def stops(self, strings: tuple[str, ...]) -> dict[str, Any]:
        """To stop at these; nothing where we must watch for them ourselves."""
        if not strings or self.stop == "watched" or len(strings) > MOST_STOPS:
            return {}
        said: dict[str, Any] = {"stop": list(strings)}
        if self.more:
            said |= {"no_stop_trim": True} if self.server == "SGLang" else _KEEP
        return said

    def numbered(self) -> dict[str, Any]:
        """To tell of each token its log-probability, and its number where it does."""
        if not self.logprobs:
            return {}
        return {"logprobs": True} | ({"return_tokens_as_token_ids": True} if self.ids else {})


MOST_STOPS = 4
_KEEP = {"include_stop_str_in_output": True}
