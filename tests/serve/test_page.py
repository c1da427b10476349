"""The page in a real browser: asked by hand, watched, compared, shared, and not to be fooled.

One browser and one server, whose scripted model takes its time, for all of it.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from browser import CHROMIUM
from page_server import HOSTILE, app, serving

from cot_engine import RunConfig, plugins
from cot_engine.serve.keys import Keys
from cot_engine.serve.page import form, watch

PICTURE = Path(__file__).parents[2] / "examples" / "images" / "chart-1.png"
SLOW = 0.05  # seconds for a word of a model that is to be caught at it


# Keeps each text of those who write, whenever anything changes.
_SEE = """() => {
  window.seen = [];
  new MutationObserver(() => {
    for (const e of document.querySelectorAll(".card.writing .text:not(.empty)")) {
      seen.push([e.closest("article").id, e.textContent, !!document.querySelector(".run .answer")]);
    }
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def server():
    with serving(app(0.003)) as address:
        yield address


@pytest.fixture(scope="module")
def slow_server():
    with serving(app(SLOW)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with sync.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", *camera]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """Opens a page of its own, and sees to it that none complains or asks anybody else."""
    contexts, complaints, asked = [], [], []

    def open_page(address, expected=(), before=None, **options):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(12_000)

        def complain(text):
            if not any(each in text for each in expected):
                complaints.append(text)

        page.on("console", lambda said: said.type == "error" and complain(said.text))
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: asked.append((address, request.url)))
        if before:
            before(page)
        page.goto(address)
        page.bring_to_front()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    for address, url in asked:
        assert url.startswith((address, "data:", "blob:")), url


def ask(page, question, **values):
    """Ask by keyboard, with the values of the form's controls."""
    for selector, value in values.items():
        page.locator(f"#{selector}").fill(value)
    page.fill("#question", question)
    page.press("#question", "Enter")


def answered(page, runs=1):
    for number in range(1, runs + 1):
        page.wait_for_selector(f".run:nth-child({number}) .answer strong")


def told(address, method, path, body=None):
    """Status and JSON of a request without a browser."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    headers = {"Content-Type": "application/json"}
    connection.request(method, path, body and json.dumps(body), headers)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


# --- asking and watching -------------------------------------------------------------------------


def test_a_picture_is_asked_about_and_the_search_watched(visit, slow_server):
    page = visit(slow_server)
    page.set_input_files("#files", PICTURE)
    page.wait_for_selector("#pictures img")
    assert "chart-1.png, 256 × 256" in page.inner_text("#pictures")
    page.evaluate(_SEE)
    ask(page, "Which two bars add up to 9?")
    page.wait_for_selector(".now:has-text('Writing SUMMARY')")
    page.wait_for_selector(".column:nth-child(2) .card.writing")
    details = page.locator(".column:nth-child(1) .matches")
    details.locator("summary").click()  # a match, while others are written
    assert "shown first" in details.inner_text()
    assert re.search(r"[A-D] beat [A-D] [+−=?]\S* [+−=?]\S*", details.inner_text())
    details.evaluate("element => { element.was = true }")

    answered(page)
    texts = {}
    for id, text, over in page.evaluate("seen"):
        assert not over, "the answer was there before"
        texts.setdefault(id, []).append(text)
    assert len(texts) >= 12
    grown = [each for each in texts.values() if len(set(each)) > 2]
    assert grown and all(b.startswith(a) for each in grown for a, b in pairwise(each))
    assert page.locator(".column").count() == 4
    assert details.evaluate("element => element.was && element.open"), "it stays open"
    assert page.locator(".thinking").evaluate("e => e.open"), "somebody is reading there"
    page.click("text=What it cost")
    table = page.inner_text(".run .cost")
    assert "generate" in table and "judge" in table
    assert "by stage-beam, 4 candidates" in page.inner_text("#history")


def test_the_answer_comes_first_and_the_thinking_is_folded(visit, server):
    page = visit(server)
    ask(page, "How many?")
    answered(page)
    page.wait_for_selector(".thinking:not([open])")
    assert page.inner_text("#spoken").startswith("Answer: ")
    assert page.locator(".now").is_hidden()
    answer = page.locator(".run .answer").bounding_box()
    assert answer["y"] < page.locator(".thinking").bounding_box()["y"]
    page.click(".thinking > summary")
    assert page.locator(".card.won").count() == 3


def test_it_can_be_stopped(visit, slow_server):
    page = visit(slow_server)
    ask(page, "How many?")
    page.wait_for_selector(".card.writing")
    page.click(".stop")
    page.wait_for_selector(".run .answer.none")
    assert "Interrupted" in page.inner_text(".run .answer")
    assert "stopped by stage-beam" in page.inner_text("#history")
    assert told(slow_server, "GET", "/health")[1]["running"] == 0


def test_what_is_wrong_is_said(visit, server):
    page = visit(server, expected=["400", "503"])
    ask(page, "  ")
    assert "The question is empty." in page.inner_text("#trouble")
    page.set_input_files("#files", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"x"})
    page.wait_for_selector("#trouble:has-text('“a.txt” is no picture.')")
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": b"x"})
    ask(page, "How many?")
    page.wait_for_selector("#trouble:has-text(\"The picture 'a.png'\")")
    page.click("text=Remove")
    ask(page, "How many?", budget="a lot")
    page.wait_for_selector("#trouble:has-text('a lot new tokens')")
    ask(page, "break it", budget="")
    page.wait_for_selector(".run .failure:has-text('fell over')")
    assert page.locator(".now").is_hidden()


@pytest.mark.slow
def test_two_strategies_are_compared(visit, server):
    page = visit(server)
    page.check("#compare")
    page.select_option("#side-b [name=strategy]", "majority")
    page.locator("#side-b [data-of=majority] [name=n]").fill("3")
    ask(page, "How many?", budget="2000")
    answered(page, 2)
    left, right = (page.locator(f".run:nth-child({number})") for number in (1, 2))
    (x, y), (other_x, other_y) = page.evaluate(
        "[...document.querySelectorAll('.run')].map(e => e.getBoundingClientRect())"
        ".map(box => [box.x, box.y])"
    )
    assert y == other_y and x < other_x
    assert "stage-beam (n = 4" in left.inner_text() and "majority (n = 3" in right.inner_text()
    for run in (left, right):
        run.locator("text=What it cost").click()
        assert "2,000 new tokens, of which" in run.locator(".cost").inner_text()
        run.locator(".thinking > summary").click()
        assert run.locator(".card").count() > 1
    assert page.inner_text("#history").count(" by ") == 2
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_pictures_come_by_drop_paste_and_camera(visit, server):
    page = visit(server)
    data = base64.b64encode(PICTURE.read_bytes()).decode()
    for name, make in (
        ("dropped", "new DragEvent('drop', {dataTransfer: given, bubbles: true})"),
        ("pasted", "new ClipboardEvent('paste', {clipboardData: given, bubbles: true})"),
    ):
        page.evaluate(
            f"""data => {{
              const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
              const given = new DataTransfer();
              given.items.add(new File([bytes], "{name}.png", {{type: "image/png"}}));
              document.querySelector("#drop").dispatchEvent({make});
            }}""",
            data,
        )
        page.wait_for_selector(f"#pictures img[alt^='{name}.png']")
    page.click("#shoot")
    page.wait_for_selector("#camera[open]")
    for _ in range(50):  # until the camera has given a picture
        page.click("#take")
        page.wait_for_timeout(100)
        if page.locator("#camera").is_hidden():
            break
    page.wait_for_selector("#pictures img[alt^='camera.png']")
    assert page.locator("#pictures li").count() == 3
    ask(page, "What is there?")
    answered(page)
    assert page.locator("#asked-pictures img").count() == 3


@pytest.mark.slow
def test_keys_are_all_it_takes(visit, server):
    """From load to answer and into the thinking without a pointer, and where the focus is shows."""
    page = visit(server)
    page.on("filechooser", lambda chooser: chooser.set_files(PICTURE))

    def go_to(selector):
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                shown = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert shown != "none", selector
                return
        raise AssertionError(f"no way to {selector}")

    go_to("#choose")
    page.keyboard.press("Enter")
    page.wait_for_selector("#pictures img")
    go_to("#question")
    page.keyboard.type("Which bar?")
    go_to("#side-a [name=strategy]")
    page.keyboard.type("best")
    go_to("#send")
    page.keyboard.press("Enter")
    answered(page)
    assert "best-of-n" in page.inner_text(".run .kicker")
    go_to(".thinking > summary")
    page.wait_for_selector(".thinking:not([open])")
    page.keyboard.press("Enter")
    page.wait_for_selector(".thinking[open] .card")
    go_to(".matches summary")
    page.keyboard.press("Space")
    assert "shown first" in page.inner_text(".matches[open]")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.closest('.run') !== null")


# --- for whom it is ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_screen_readers_are_told_what_it_is(visit, slow_server, scheme):
    """axe-core has nothing against it: empty, at work, answered with all of it open, failed. In
    the dark only the colours differ."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = {"runOnly": ["color-contrast"]} if scheme == "dark" else {}
    page = visit(slow_server, color_scheme=scheme, reduced_motion="reduce", expected=["503"])

    def sound(state):
        found = axe.run(page, options=rules)
        said = [(v["id"], v["nodes"][0]["html"][:200]) for v in found.response["violations"]]
        assert not said, state

    sound("empty")
    page.set_input_files("#files", PICTURE)
    page.check("#compare")
    for each in page.query_selector_all(".inputs:not([hidden]) [name=n]"):
        each.fill("2")
    ask(page, "Which two bars?")
    page.wait_for_selector(".run:nth-child(2) .card.writing")
    sound("at work")
    answered(page, 2)
    for fold in page.query_selector_all(".fold:not([open]) > summary, .matches > summary"):
        fold.click()
    sound("answered")
    ask(page, "break it")
    page.wait_for_selector(".run .failure:not([hidden])")
    sound("failed")


@pytest.mark.slow
def test_it_is_readable_on_a_phone(visit, server):
    page = visit(server, viewport={"width": 360, "height": 740}, expected=["503"])
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    page.set_input_files("#files", PICTURE)
    page.check("#compare")
    ask(page, "Which two bars add up to " + "nine" * 40 + "?")
    answered(page, 2)
    for fold in page.query_selector_all(".fold > summary, .matches > summary"):
        fold.click()
    assert page.evaluate(wide) == 360
    small = page.evaluate(
        "[...document.querySelectorAll('p, .text, button, label')].filter("
        "e => e.offsetParent && parseFloat(getComputedStyle(e).fontSize) < 12).length"
    )
    assert small == 0
    ask(page, "break it")
    page.wait_for_selector(".run .failure:not([hidden])")
    assert page.evaluate(wide) == 360


# --- kept and shared -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_asked_can_be_opened_again_shared_and_forgotten(visit, server, browser, tmp_path):
    page = visit(server, expected=["404"])
    page.set_input_files("#files", PICTURE)
    ask(page, "Which <b>bar</b>?")
    answered(page)
    found = page.inner_text(".run .answer strong")
    with page.expect_download() as download:
        page.click(".share")
    download.value.save_as(tmp_path / "shared.html")

    page.reload()
    assert page.locator("#exchange").is_hidden()
    page.click("#history .open")
    answered(page)
    assert page.inner_text(".run .answer strong") == found
    assert page.inner_text("#asked") == "Which <b>bar</b>?"
    assert page.locator("#asked-pictures img").count() == 1

    page.evaluate(
        """() => {
          const kept = JSON.parse(localStorage.getItem("cot-engine.history"));
          kept[0].runs[0].id = "chatcmpl-" + "0".repeat(24);
          localStorage.setItem("cot-engine.history", JSON.stringify(kept));
        }"""
    )
    page.reload()
    page.click("#history .open")  # the server has it no more: what the browser knows is shown
    page.wait_for_selector(".run .failure:has-text('no such search')")
    assert page.inner_text(".run .answer strong") == found
    page.click("#forget")
    page.reload()
    assert page.locator("#past").is_hidden() and page.locator("#empty").is_visible()

    alone = browser.new_context(offline=True, java_script_enabled=False)
    shared = alone.new_page()
    asked = []
    shared.on("request", lambda request: asked.append(request.url))
    shared.goto((tmp_path / "shared.html").as_uri())
    assert shared.locator(".answer strong").inner_text() == found
    assert shared.locator("article").count() > 4 and shared.locator(".images img").count() == 1
    assert all(url.startswith(("file:", "data:")) for url in asked)
    alone.close()


@pytest.mark.slow
@pytest.mark.parametrize("policy", [True, False])
def test_nothing_that_was_written_runs(visit, slow_server, policy):
    """Script and escapes in a reply, a question, a file's name and the history: with the policy of
    the page, and without it."""

    def bare(page):
        def without(route):
            reply = route.fetch()
            headers = {k: v for k, v in reply.headers.items() if "security-policy" not in k}
            route.fulfill(response=reply, headers=headers)

        page.route(slow_server, without)

    page = visit(slow_server, before=None if policy else bare)
    name = "<img src=x onerror=window.owned=5>\u202egnp.<script>window.owned=6<\u2215script>.png"
    page.set_input_files(
        "#files", {"name": name, "mimeType": "image/png", "buffer": PICTURE.read_bytes()}
    )
    page.wait_for_selector("#pictures img")
    assert "<img src=x" in page.inner_text("#pictures")
    ask(page, f"hostile {HOSTILE}")
    page.wait_for_selector(".card.writing:has-text('<script>')")
    answered(page)
    for fold in page.query_selector_all(".fold:not([open]) > summary, .card summary"):
        fold.click()
    page.wait_for_timeout(100)
    drawn = page.inner_text(".run")
    assert "<img src=x onerror=window.owned=2>" in drawn and "␛[31m" in drawn
    assert "⟨U+202E⟩" in drawn and "\u202e" not in drawn and "{{7*7}}" in drawn
    assert page.locator(".run img, .run script, .run a:not(.share)").count() == 0
    page.reload()
    page.click("#history .open")
    answered(page)
    assert page.evaluate("window.owned") is None
    assert page.evaluate("document.scripts.length") == 1


@pytest.mark.slow
def test_a_key_is_asked_for_where_one_is_needed(visit):
    with serving(app(0, keys=Keys({"me": "a-key-of-some-length"}))) as address:
        page = visit(address, expected=["401"])
        ask(page, "How many?")
        page.wait_for_selector("#key[open]")
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key[open]")
        page.fill("#key-text", "a-key-of-some-length")
        page.keyboard.press("Enter")
        answered(page)
        with page.expect_download() as download:
            page.click(".share")
        assert download.value.suggested_filename.endswith(".html")
        assert told(address, "GET", f"/{page.get_attribute('.share', 'href')}")[0] == 401


# --- without a browser ---------------------------------------------------------------------------


def test_the_form_offers_what_is_installed_as_the_server_was_told():
    config = RunConfig(strategy="majority", parameters={"n": 7})
    found = form.strategies(config)
    assert found[0].name == "majority" and {i.name: i.value for i in found[0].inputs}["n"] == 7
    assert sorted(each.name for each in found) == sorted(plugins.choices("strategy"))
    judges = [each.name for each in form.judges(config)]
    assert judges[0] == "auto" and "self" in judges
    assert "self+likelihood" not in judges, "it needs a weight"


@dataclass
class Strange:
    """A stranger's strategy.

    More of it."""

    weight: float
    mood: Literal["calm", "bold"] = "bold"
    most: int | None = None
    table: dict[str, int] = field(default_factory=dict)
    part: object = object()


def test_a_strangers_parameters_have_controls_where_there_are_any(monkeypatch):
    monkeypatch.setattr(plugins, "names", lambda kind: ["strange"])
    monkeypatch.setattr(plugins, "load", lambda kind, name: Strange)
    found = next(each for each in form.strategies(RunConfig()) if each.name == "strange")
    assert found.said == "A stranger's strategy."
    controls = {each.name: (each.kind, each.value, each.needed) for each in found.inputs}
    assert controls == {
        "weight": ("number", "", True),
        "mood": ("choice", "bold", False),
        "most": ("number", "", False),
    }


def test_a_search_that_nobody_looks_at_is_stopped(slow_server, monkeypatch):
    monkeypatch.setattr(watch, "LEAVE", 0.05)
    status, said = told(slow_server, "POST", "/ui/searches", {"question": "How many?"})
    assert status == 200
    for _ in range(100):
        if not told(slow_server, "GET", "/health")[1]["running"]:
            break
        time.sleep(0.02)
    _, events = told_events(slow_server, said["id"])
    assert '"code":"cancelled"' in events


def told_events(address, id):
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request("GET", f"/ui/searches/{id}/events")
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"question": 3}, "question is 3"),
        ({"question": "How?", "pictures": [{"data": "%"}]}, "did not arrive as base64"),
        ({"question": "How?", "strategy": "stage-beem"}, "stage-beam"),
        ({"question": "How?", "parameters": {"n": 10**6}}, "n is 1000000"),
        ({"question": "How?", "allow_url": True}, "allow_url"),
    ],
)
def test_what_cannot_be_asked_is_refused_as_by_the_api(server, body, said):
    status, found = told(server, "POST", "/ui/searches", body)
    assert status == 400 and said in found["error"]["message"]
    assert found["error"].keys() == {"message", "type", "param", "code"}
