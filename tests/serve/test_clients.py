"""What people ask with: OpenAI's own client and LangChain's, of the bundled model."""

from __future__ import annotations

import asyncio
import io
import re
import time
from pathlib import Path

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from serving import QUESTION, TRAINED, Gate, picture, scripted, seen, serving

from cot_engine import Engine, scenes
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.serve import stream
from cot_engine.serve.limits import Limits


@pytest.fixture(scope="module")
def served():
    with Engine.from_pretrained() as engine, serving(engine) as made:
        yield made


@pytest.fixture(scope="module")
def client(served):
    with served.openai() as made:
        yield made


def scene(index: int):
    """A question of the bundled world, its picture's file, and its answer."""
    made = scenes.sample(5, index, "val")
    buffer = io.BytesIO()
    made.image.save(buffer, "PNG")
    return made, buffer.getvalue()


def trace_of(served, reply) -> Trace:
    with served.http() as http:
        return Trace.parse(http.get(f"/v1/traces/{reply.id}").content, reply.id)


def test_a_picture_is_answered_as_by_the_engine_and_usage_adds_up(served, client):
    made, data = scene(3)
    reply = client.chat.completions.create(
        model="bundled:stage-beam-2", messages=seen(made.question, data), seed=4
    )
    alone = served.desk.engine.solve(data, made.question, strategy="stage-beam", n=2, seed=4)
    [choice] = reply.choices
    assert choice.message.content == alone.text and choice.finish_reason == "stop"
    assert "CAPTION\n" in choice.message.reasoning_content
    trace = trace_of(served, reply)
    assert trace.canonical() == alone.trace.canonical()
    total = sum(trace.finished.usage.values(), Usage())
    usage, own = reply.usage, reply.usage.cot_engine
    assert (usage.completion_tokens, usage.prompt_tokens) == (
        total.decoded,
        total.prefilled + total.cached,
    )
    roles = own["roles"]
    assert sum(role["flops"] for role in roles.values()) == own["flops"] == total.flops
    assert 0 < own["judge_share"] == roles["judge"]["flops"] / total.flops < 1


def test_what_the_client_does_with_a_stream(served, client):
    made, data = scene(4)
    asked = {"model": "bundled", "messages": seen(made.question, data)}
    whole = client.chat.completions.create(**asked)
    thought, content, usage, finish = "", "", None, None
    usual = {"stream": True, "stream_options": {"include_usage": True}}
    for chunk in client.chat.completions.create(**asked, **usual):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            thought += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    message = whole.choices[0].message
    assert (content, thought, finish) == (message.content, message.reasoning_content, "stop")
    assert usage.total_tokens == whole.usage.total_tokens


def test_the_documented_client_runs(served, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[2] / "docs" / "servers.md").read_text("utf-8")
    [code, *_] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "scene.png").write_bytes(scene(3)[1])
    monkeypatch.chdir(tmp_path)
    exec(code.replace("http://127.0.0.1:8000", served.base), {})
    answer, thought = capsys.readouterr().out.split("\n", 1)
    assert answer and thought.startswith("SUMMARY\n")


def test_many_ask_at_once_and_each_gets_its_own(served):
    """Eight questions in the engine's batches at once, each answered as it is alone."""

    async def all_of_them():
        async with openai.AsyncOpenAI(
            base_url=f"{served.base}/v1", api_key="none", max_retries=0
        ) as client:
            made = [scene(index) for index in range(8)]
            asked = (
                client.chat.completions.create(
                    model="bundled:greedy", messages=seen(each.question, data)
                )
                for each, data in made
            )
            return made, await asyncio.gather(*asked)

    made, replies = asyncio.run(all_of_them())
    right = sum(
        reply.choices[0].message.content == each.answer
        for (each, _), reply in zip(made, replies, strict=True)
    )
    assert right >= 6
    for (each, data), reply in list(zip(made, replies, strict=True))[:2]:
        alone = served.desk.engine.solve(data, each.question, strategy="greedy")
        assert reply.choices[0].message.content == alone.text


def test_errors_are_those_that_the_client_knows(client):
    ask = client.chat.completions.create
    with pytest.raises(openai.NotFoundError) as none:
        ask(model="gpt-4o", messages=QUESTION)
    assert none.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="Did you mean strategy") as bad:
        ask(model="bundled", messages=QUESTION, extra_body={"strateg": "greedy"})
    assert bad.value.param == "strateg"
    with pytest.raises(openai.BadRequestError, match="There are 17 pictures; the most is 16"):
        ask(model="bundled", messages=seen("How many?", *[picture()] * 17))
    with pytest.raises(openai.BadRequestError, match="cannot pay"):
        ask(model="bundled", messages=QUESTION, stream=True, max_tokens=1)


def test_a_client_that_gives_up_ends_its_search_and_one_that_tries_again_is_served():
    with scripted(Gate(), 1) as engine, serving(engine, Limits(queue=0)) as served:
        hasty = served.openai(timeout=0.3)
        with pytest.raises(openai.APITimeoutError):
            hasty.chat.completions.create(model="bundled", messages=QUESTION, extra_body=TRAINED)
        until(lambda: served.desk.running == 0)
        client = served.openai(max_retries=3)
        chunks = client.chat.completions.create(
            model="bundled",
            messages=seen("?", picture(), picture()),
            stream=True,
            extra_body=TRAINED,
        )
        assert next(chunks).choices[0].delta.role == "assistant"
        with pytest.raises(openai.RateLimitError) as full:
            served.openai().chat.completions.create(model="bundled", messages=QUESTION)
        assert full.value.code == "queue_full"
        chunks.close()
        until(lambda: served.desk.running == 0)
        engine.backend.open.set()
        ask = client.chat.completions.create
        assert (
            ask(model="bundled", messages=QUESTION, extra_body=TRAINED).choices[0].message.content
        )


def test_a_stream_says_that_it_is_alive_and_what_went_wrong(monkeypatch):
    monkeypatch.setattr(stream, "BEGIN_SECONDS", 0.01)
    monkeypatch.setattr(stream, "ALIVE_SECONDS", 0.01)
    with scripted(Gate(), 1) as engine, serving(engine) as served:
        asked = {"model": "bundled", "messages": QUESTION, "extra_body": TRAINED}
        chunks = served.openai().chat.completions.create(**asked, stream=True)
        assert next(chunks).choices[0].delta.role == "assistant"
        with served.http() as http:  # the same, as it is sent
            body = {"model": "bundled", "messages": QUESTION, "stream": True}
            with http.stream("POST", "/v1/chat/completions", json=body) as raw:
                lines = raw.iter_lines()
                assert next(lines).startswith("data: ") and next(lines) == ""
                assert next(lines) == ": alive"
        [running] = served.desk._running
        served.loop.call_soon_threadsafe(running.cancel)
        with pytest.raises(openai.APIError, match="The search was cancelled") as broken:
            list(chunks)
        assert broken.value.code == "cancelled"


def test_a_search_that_takes_too_long_is_a_504():
    with scripted(Gate()) as engine, serving(engine, Limits(seconds=0.05)) as served:
        with pytest.raises(
            openai.InternalServerError, match="The search was stopped after"
        ) as late:
            served.openai().chat.completions.create(
                model="bundled", messages=QUESTION, extra_body=TRAINED
            )
        assert late.value.status_code == 504 and late.value.code == "timeout"


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_langchain_asks_and_streams(served):
    made, data = scene(3)
    chat = ChatOpenAI(
        model="bundled:stage-beam-2",
        base_url=f"{served.base}/v1",
        api_key="none",
        seed=4,
        max_retries=0,
        extra_body={"detail": "brief"},
    )
    asked = [SystemMessage("Look closely."), HumanMessage(seen(made.question, data)[0]["content"])]
    reply = chat.invoke(asked)
    assert reply.content and reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata["input_token_details"]["cache_read"] > 0
    streamed = "".join(chunk.content for chunk in chat.stream(asked))
    assert streamed == reply.content
    with pytest.raises(openai.BadRequestError, match="no tools"):
        chat.bind(tools=[{"type": "function", "function": {"name": "f"}}]).invoke(asked)
