"""An OpenAI-compatible server over one of the engine's own backends: real HTTP, real tokens, real
log-probabilities, and switches for what a poorer server lacks and for what can go wrong.

    with serving(backend, stop="named") as served: ... served.url ...

    python openai_server.py '{"stop": "named"}'     (over the scripted backend; prints its port)

It speaks vLLM's dialect where nothing is switched off. `faults` are done to chat requests, one
each, in order, before anything is answered as it should be: "reset", "500", "503:0.05" (with
Retry-After), "429:0.05", "garbage", "half" (a body that breaks off), "slow" (a byte now and then),
"hang". `log` has what was asked, `state` what came of it.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import re
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from cot_engine.core.boundaries import Until
from cot_engine.core.requests import (
    Choose,
    Dialogue,
    Generate,
    Measure,
    Piece,
    Prompt,
    Sampling,
    Segment,
    Turn,
)
from cot_engine.errors import InputError

_PIECE = re.compile(r"\s*\S+|\s+")
TOPS = ("1", "2", "A", "B", "yes", "no", "the")


@dataclass
class Switches:
    """What it can do, and is called."""

    models: tuple = ("served",)
    owner: str = "vllm"
    version: str = "0.32.0"
    context: int | None = 4096
    key: str = ""
    prefill: str = "flag"  # or ignored, refused
    stop: str = "kept"  # or named, trimmed
    strict: bool = False  # unknown fields are a 400
    n: bool = True
    seeds: bool = True
    streams: bool = True
    logprobs: bool = True
    ids: bool = True
    verdicts: tuple = ("token ids", "choice", "bias", "top")
    pictures: int = 16
    usage: bool = True
    cached: bool = True
    tokenize: bool = True
    reasoning: bool = False
    tasks: tuple = ("pooling", "classify", "score", "rerank")
    rows: int = 1  # of numbers that pooling gives
    activation: bool | None = None  # what it does whatever it is asked; None: as it is asked
    numberless: object = False  # True, or what stands in a number's place
    faults: list = field(default_factory=list)
    fault: str = ""  # of every request
    delay: float = 0.0  # seconds before each reply
    pace: float = 0.0  # seconds between tokens of a stream
    stall: int = 0  # tokens behind which a stream stands still


OPENAI = {
    *("model", "messages", "max_tokens", "temperature", "top_p", "seed", "n", "stop", "stream"),
    *("stream_options", "logprobs", "top_logprobs", "logit_bias"),
}


class App:
    def __init__(self, backend, switches: Switches) -> None:
        self.backend, self.switches = backend, switches
        self.log: list[dict] = []
        self.state = {"open": 0, "most": 0, "gone": 0}
        self.words: dict[int, str] = {}
        self.app = Starlette(
            routes=[
                Route("/v1/models", self.models),
                Route("/version", self.version),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                *(
                    Route(f"/{task}", self.pooled, methods=["POST"])
                    for task in ("pooling", "classify", "score", "rerank")
                ),
                Route("/log", self.told),
            ]
        )

    # --- what is not chat ---

    async def told(self, request):
        return JSONResponse({"log": self.log, **self.state})

    async def models(self, request):
        if (refusal := self.keyless(request)) is not None:
            return refusal
        s = self.switches
        more = {} if s.context is None else {"max_model_len": s.context}
        return JSONResponse({"data": [{"id": n, "owned_by": s.owner, **more} for n in s.models]})

    async def version(self, request):
        if not self.switches.version:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse({"version": self.switches.version})

    async def tokenize(self, request):
        if not self.switches.tokenize:
            return JSONResponse({"detail": "Not Found"}, 404)
        text = (await request.json())["prompt"]
        return JSONResponse({"tokens": self.ids(text)})

    async def pooled(self, request):
        """A reward model's endpoints: the first number of the final state is the score. As vLLM it
        divides what it pools by its length, and lays a sigmoid on a score, unless it is told."""
        body = await request.json()
        self.log.append(body | {"path": request.url.path})
        if (refusal := self.keyless(request)) is not None:
            return refusal
        s, task = self.switches, request.url.path[1:]
        if task not in s.tasks:
            return JSONResponse({"detail": "Not Found"}, 404)
        if fault := s.faults.pop(0) if s.faults else "":
            return await self.fails(request, *fault.partition(":")[::2])
        if task in ("score", "rerank"):
            query = body["queries" if task == "score" else "query"]
            document = body["documents"]
            document = document[0] if isinstance(document, list) else document
            messages = [{"role": r, "content": c["content"] if isinstance(c, dict) else c}
                        for r, c in (("user", query), ("assistant", document))]  # fmt: skip
        else:
            messages = body["messages"]
        dialogue = self.dialogue(messages, body.get("add_generation_prompt", False))
        answer = await self.backend.measure(Measure("pool", (dialogue,)))
        state, used = list(answer.numbers[0][0]), answer.usage
        score = state[0]
        if body.get("use_activation", True) if s.activation is None else s.activation:
            state = [each / math.hypot(*state) for each in state]
            score = 1 / (1 + math.exp(-score))
        data = {
            "pooling": {"data": state if s.rows == 1 else [state] * s.rows},
            "classify": {"label": "LABEL_0", "probs": [score], "num_classes": 1},
            "score": {"score": score},
            "rerank": {"relevance_score": score, "document": {"text": "", "multi_modal": None}},
        }[task]
        count = used.prefilled + used.cached
        usage = {"prompt_tokens": count, "total_tokens": count}
        if s.numberless:
            data = {key: None if s.numberless is True else [s.numberless] for key in data}
        data["index"] = 0
        return JSONResponse({"results" if task == "rerank" else "data": [data], "usage": usage})

    def dialogue(self, messages, opens: bool, goes_on: bool = False) -> Dialogue:
        turns = []
        for k, message in enumerate(messages):
            text, images = self.parts(message["content"])
            mark = goes_on and k == len(messages) - 1
            turns.append(Turn(message["role"], (Piece(text, False, mark),), tuple(images)))
        return Dialogue(tuple(turns), opens)

    def keyless(self, request):
        sent = request.headers.get("authorization", "")
        if self.switches.key and sent != f"Bearer {self.switches.key}":
            return JSONResponse({"error": {"message": f"Incorrect API key provided: {sent}"}}, 401)
        return None

    # --- text and tokens ---

    def ids(self, text: str) -> list[int]:
        chat = getattr(self.backend, "text", None)
        if chat is not None:
            return list(chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        words = _PIECE.findall(text)
        found = [hash_of(word) for word in words]
        self.words.update(zip(found, words, strict=True))
        return found

    def pieces(self, made) -> list[str]:
        """The text of each token that was written."""
        chat = getattr(self.backend, "text", None)
        if chat is None:
            return _PIECE.findall(made.text)
        texts = [chat.added((), made.ids[: k + 1]) for k in range(len(made.ids))]
        return [text[len(before) :] for before, text in zip(["", *texts], texts, strict=False)]

    def word(self, number: int) -> str:
        chat = getattr(self.backend, "text", None)
        return self.words[number] if chat is None else chat._decode([number])

    # --- chat ---

    async def chat(self, request):
        try:
            body = await request.json()
        except ClientDisconnect:
            return Response()
        self.state["open"] += 1
        self.state["most"] = max(self.state["most"], self.state["open"])
        self.log.append(body | {"authorization": request.headers.get("authorization")})
        gone = asyncio.create_task(self.leaving(request))
        work = asyncio.create_task(self.answer(request, body))
        try:
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.state["gone"] += 1
                return Response()
            return work.result()
        except InputError as error:
            said = f"This model's maximum context length is exceeded. {error.message}"
            return JSONResponse({"error": {"message": said, "code": 400}}, 400)
        finally:
            self.state["open"] -= 1
            gone.cancel()
            work.cancel()

    async def leaving(self, request):
        while (await request.receive())["type"] != "http.disconnect":
            pass

    async def answer(self, request, body):
        s = self.switches
        if (refusal := self.keyless(request)) is not None:
            return refusal
        fault = s.fault or (s.faults.pop(0) if s.faults else "")
        if fault:
            return await self.fails(request, *fault.partition(":")[::2])
        if body["model"] not in s.models:
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        if s.strict and (odd := set(body) - OPENAI):
            said = f"Unknown parameter: {sorted(odd)[0]}"
            return JSONResponse({"error": {"message": said}}, 400)
        if s.delay:
            await asyncio.sleep(s.delay)
        *_, last = messages = body["messages"]
        goes_on = body.get("continue_final_message", False)
        if goes_on and s.prefill == "refused":
            return JSONResponse({"error": {"message": "continue_final_message: unknown"}}, 422)
        prefix = ""
        if last["role"] == "assistant":
            prefix = last["content"]
            if not goes_on or s.prefill == "ignored":
                prefix += "</s>\nUSER: \nASSISTANT:"  # a new turn
        text, images = self.parts(messages[0]["content"])
        if len(images) > s.pictures:
            said = f"At most {s.pictures} image(s) may be provided"
            return JSONResponse({"error": {"message": said}}, 400)
        prompt = Prompt(text, tuple(images))
        turns = [m["role"] for m in messages]
        if body.get("max_tokens") == 1 and turns not in (["user"], ["user", "assistant"]):
            dialogue = self.dialogue(messages, not goes_on, goes_on)
            return JSONResponse(await self.weighed(body, prompt, prefix, dialogue))
        if body.get("max_tokens") == 1 and (
            "logprob_token_ids" in body or body.get("top_logprobs")
        ):
            return JSONResponse(await self.weighed(body, prompt, prefix))
        return await self.wrote(request, body, prompt, prefix)

    def parts(self, content):
        if isinstance(content, str):
            return content, []
        import PIL.Image

        from cot_engine.images.load import load_image

        images = []
        for part in content:
            if part["type"] == "image_url":
                data = part["image_url"]["url"].removeprefix("data:image/png;base64,")
                images.append(load_image(PIL.Image.open(io.BytesIO(base64.b64decode(data)))))
        return "".join(p["text"] for p in content if p["type"] == "text"), images

    def scope(self, body) -> str:
        return body.get("cache_salt") or "all"

    def usage(self, used, written: int) -> dict:
        s = self.switches
        if not s.usage:
            return {}
        count = {"prompt_tokens": used.prefilled + used.cached, "completion_tokens": written}
        if s.cached:
            count["prompt_tokens_details"] = {"cached_tokens": used.cached}
        return {"usage": count}

    def named(self, number: int, text: str, body) -> str:
        by_number = self.switches.ids and body.get("return_tokens_as_token_ids")
        return f"token_id:{number}" if by_number else text

    def entry(self, number: int, text: str, logprob: float, body, tops=()) -> dict:
        name = self.named(number, text, body)
        return {"token": name, "logprob": logprob, "bytes": list(text.encode()),
                "top_logprobs": list(tops)}  # fmt: skip

    async def weighed(self, body, prompt, prefix, dialogue=None) -> dict:
        """One token, with the log-probabilities that were asked for."""
        ways, numbers = self.switches.verdicts, body.get("logprob_token_ids")
        by_number = bool(numbers) and "token ids" in ways
        if numbers and not by_number:
            body = {k: v for k, v in body.items() if k != "return_tokens_as_token_ids"}
        listed = [self.word(n) for n in numbers] if by_number else list(TOPS)
        if not by_number and "structured_outputs" in body and "choice" in ways:
            listed = body["structured_outputs"]["choice"]
        if not by_number and "logit_bias" in body and "bias" in ways:
            listed = [self.word(int(n)) for n in body["logit_bias"]]
        ask = Choose(self.scope(body), prompt, ("",), tuple(listed), prefix)
        if not hasattr(self.backend, "text"):  # the scripted one reads the tail alone
            ask = Choose(self.scope(body), Prompt("", prompt.images), (prompt.text,), ask.choices)
        if dialogue is not None:
            chosen = await self.backend.measure(
                Measure(self.scope(body), (dialogue,), tuple(listed))
            )
            found = chosen.numbers[0][0]
        else:
            chosen = await self.backend.choose(ask)
            found = chosen.logprobs[0]
        self.check_room(chosen.usage, 1)
        each = sorted(zip(listed, found, strict=False), key=lambda pair: -pair[1])
        known = by_number or ("top" in ways and "top_logprobs" in body)
        numbers = {text: self.ids(text)[0] for text, _ in each}
        tops = [self.entry(numbers[t], t, p, body) for t, p in each] if known else []
        word, logprob = each[0]
        logprobs = {"content": [self.entry(numbers[word], word, logprob, body, tops)]}
        return {
            "choices": [{"message": {"content": word}, "finish_reason": "length",
                         "logprobs": logprobs if self.switches.logprobs else None}],
            **self.usage(chosen.usage, 1),
        }  # fmt: skip

    async def wrote(self, request, body, prompt, prefix):
        s = self.switches
        stops = tuple(body.get("stop") or ())
        most = body["max_tokens"]
        count = body.get("n", 1) if s.n else 1
        seed = body.get("seed", 0) if s.seeds else time.monotonic_ns() & 0xFFFFFFFF
        heat = body.get("temperature", 1.0)
        top_k = max(0, body.get("top_k", 0))
        sampling = Sampling(heat, body.get("top_p", 1.0), top_k)
        before = (Segment(prefix),) if prefix else ()
        made = await self.backend.generate(
            Generate(
                self.scope(body),
                prompt,
                before,
                Until(stops),
                tuple(seed + i for i in range(count)),
                most,
                sampling,
            )
        )
        self.check_room(made.usage, most)
        choices = [self.choice(i, each, body, stops) for i, each in enumerate(made.generations)]
        usage = self.usage(made.usage, sum(len(c["tokens"]) for c in choices))
        if body.get("stream") and s.streams:
            return StreamingResponse(self.stream(choices[0], usage), media_type="text/event-stream")
        return JSONResponse({"choices": [whole(c, s) for c in choices], **usage})

    def check_room(self, used, most: int) -> None:
        read, context = used.prefilled + used.cached, self.switches.context
        if context is not None and read + most > context:
            raise InputError(f"{read} tokens in the messages, {most} in the completion.")

    def choice(self, index: int, made, body, stops) -> dict:
        """What one continuation is to the protocol, its tokens one by one."""
        s = self.switches
        end = Until(stops).end(made.text)
        text, reason = made.text, None
        pieces = self.pieces(made)
        if end is not None:
            text = text[:end]
            reason = max((x for x in stops if text.endswith(x)), key=len)
            kept = s.stop == "kept" and body.get("include_stop_str_in_output")
            text = text if kept else text.removesuffix(reason)
        numbers, share = list(made.ids), made.logprob / max(1, len(made.ids))
        if made.finish == "eos" and hasattr(self.backend, "text"):  # as vLLM lists it
            ends = sorted(self.backend.text.eos)
            numbers, pieces = [*numbers, ends[0] if ends else 2], [*pieces, "</s>"]
        tokens = [
            self.entry(number, piece, share if k < len(made.ids) else 0.0, body)
            for k, (number, piece) in enumerate(zip(numbers, pieces, strict=True))
        ]
        finish = "length" if made.finish == "length" else "stop"
        return {"index": index, "text": text, "tokens": tokens, "finish": finish,
                "reason": reason if s.stop != "trimmed" else None, "pieces": pieces,
                "asked": bool(body.get("logprobs"))}  # fmt: skip

    async def stream(self, choice, usage):
        s, left = self.switches, choice["text"]
        for k, (piece, token) in enumerate(zip(choice["pieces"], choice["tokens"], strict=True)):
            own, left = left[: len(piece)], left[len(piece) :]
            delta = {"index": 0, "delta": {"content": own}, "finish_reason": None}
            if s.logprobs and choice["asked"]:
                delta["logprobs"] = {"content": [token]}
            yield f"data: {json.dumps({'choices': [delta]})}\n\n"
            if s.pace or k + 1 == s.stall:
                await asyncio.sleep(3600 if k + 1 == s.stall else s.pace)
        last = {"index": 0, "delta": {}, "finish_reason": choice["finish"]}
        if choice["reason"] is not None:
            last["stop_reason"] = choice["reason"]
        yield f"data: {json.dumps({'choices': [last]})}\n\n"
        yield f"data: {json.dumps({'choices': [], **usage})}\n\ndata: [DONE]\n\n"

    # --- faults ---

    async def fails(self, request, name: str, number: str):
        if name == "reset":
            sock = request.scope["extensions"]["transport"].get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            request.scope["extensions"]["transport"].abort()
            return Response()
        if name == "garbage":
            return Response('{"choices": [{"mess', media_type="application/json")
        if name in ("half", "slow", "hang"):
            return StreamingResponse(self.drip(name), media_type="application/json",
                                     headers={"content-length": "1000"})  # fmt: skip
        said = {"error": {"message": f"as it is told: {request.headers.get('authorization')}"}}
        return JSONResponse(said, int(name), {"retry-after": number} if number else None)

    async def drip(self, how: str):
        yield b'{"choices": '
        if how == "half":
            raise RuntimeError("the body breaks off here, as it is told")
        while True:
            await asyncio.sleep(0.05 if how == "slow" else 3600)
            yield b" "


def whole(choice: dict, s: Switches) -> dict:
    message = {"role": "assistant", "content": choice["text"]}
    if s.reasoning:
        message = {"role": "assistant", "content": "", "reasoning_content": choice["text"]}
    found = {"index": choice["index"], "message": message, "finish_reason": choice["finish"]}
    if choice["reason"] is not None:
        found["stop_reason"] = choice["reason"]
    if s.logprobs and choice["asked"]:
        found["logprobs"] = {"content": choice["tokens"]}
    return found


def hash_of(word: str) -> int:
    from cot_engine.backends.scripted import _number

    return _number(word)


class Protocol(H11Protocol):
    """Shows the transport to whoever is to break it."""

    def handle_events(self):
        super().handle_events()
        scope = getattr(self, "scope", None)
        if scope is not None:
            scope.setdefault("extensions", {})["transport"] = self.transport


class Served:
    """One that runs: its address, what it was asked, what can be switched."""

    def __init__(self, app: App, port: int) -> None:
        self.app, self.port = app, port
        self.url = f"http://127.0.0.1:{port}/v1"

    @property
    def switches(self) -> Switches:
        return self.app.switches

    @property
    def log(self) -> list[dict]:
        return self.app.log

    @property
    def state(self) -> dict:
        return self.app.state


def _server(app: App) -> tuple[uvicorn.Server, socket.socket]:
    # Named as TCP: only then asyncio sends small pieces at once, and not 40 ms later.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app.app, log_level="critical", http=Protocol, lifespan="off", timeout_graceful_shutdown=0
    )
    return uvicorn.Server(config), sock


@contextmanager
def serving(backend, **switches):
    """A server over `backend`, in a thread of this process."""
    app = App(backend, Switches(**switches))
    server, sock = _server(app)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield Served(app, sock.getsockname()[1])
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)


if __name__ == "__main__":
    from cot_engine.backends.scripted import ScriptedBackend

    made = App(ScriptedBackend(), Switches(**json.loads(sys.argv[1] if sys.argv[1:] else "{}")))
    ready, bound = _server(made)
    bound.listen(128)  # whoever reads the port may connect at once
    print(bound.getsockname()[1], flush=True)
    ready.run(sockets=[bound])
