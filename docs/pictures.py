"""Makes the pictures in docs/images: `python docs/pictures.py`.

Of docs/example-trace.html, and of the page, where the bundled model answers; a real Chromium looks.
It needs the extras `serve` and `test`.
"""

from __future__ import annotations

import io
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cot_engine import Engine, RunConfig
from cot_engine.serve.app import make_app
from cot_engine.serve.desk import Desk
from cot_engine.serve.page import routes

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images"
PICTURE = ROOT / "examples" / "images" / "chart-1.png"
QUESTION = "Which two bars add up to 9?"


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """The address of the page, while it is served."""
    config = RunConfig(temperature=1.0, top_p=1.0, top_k=0)  # as README's search is drawn
    desk = Desk(engine, config=config)
    app = make_app(desk, "bundled", routers=[routes.router()], public=routes.PUBLIC)
    with socket.socket() as at:
        at.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True).start()
        while not server.started:
            time.sleep(0.05)
        yield f"http://127.0.0.1:{at.getsockname()[1]}/"
        server.should_exit = True


def opened(browser: Browser, address: str, width: int, height: int, **more: Any) -> Page:
    """The page with the picture in it, and nothing moving that a picture cannot show."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        device_scale_factor=2,
        reduced_motion="reduce",
        **more,
    )
    page = context.new_page()
    page.goto(address)
    page.set_input_files("#files", PICTURE)
    page.wait_for_selector("#pictures img")
    return page


def kept(page: Page, name: str, **more: Any) -> None:
    """A picture in few colours, as a drawing has them."""
    taken = Image.open(io.BytesIO(page.screenshot(**more))).convert("RGB")
    few = taken.quantize(256, dither=Image.Dither.NONE)
    few.save(OUT / f"{name}.png", optimize=True)


def ask(page: Page, runs: int = 1) -> None:
    page.fill("#question", QUESTION)
    page.press("#question", "Enter")
    for number in range(1, runs + 1):
        page.wait_for_selector(f".run:nth-child({number}) .answer")


def top(page: Page, selector: str) -> None:
    """Scroll so that this is at the top."""
    page.evaluate("s => document.querySelector(s).scrollIntoView()", selector)


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("There is no Chromium here.")
    with Engine.from_pretrained() as engine, serving(engine) as address, sync_playwright() as found:
        worker: Any = engine.backend.worker  # type: ignore[attr-defined]
        step = worker._decode
        worker._decode = lambda: (time.sleep(0.05), step())  # too quick to be caught at it, else
        browser = found.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        page = browser.new_context(
            viewport={"width": 1280, "height": 1000}, device_scale_factor=1.5
        ).new_page()
        page.goto((ROOT / "docs" / "example-trace.html").as_uri())
        kept(page, "search")

        page = opened(browser, address, 1280, 860)
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.wait_for_selector(".column:nth-child(3) .writing .text:not(.empty)")
        kept(page, "serve-watch")
        page.wait_for_selector(".run .answer")
        page.evaluate("document.querySelector('.thinking').open = true")
        top(page, "#exchange")
        kept(page, "serve-answer")

        page = opened(browser, address, 1280, 900, color_scheme="dark")
        page.check("#compare")
        ask(page, runs=2)
        for fold in page.query_selector_all(".thinking:not([open]) > summary"):
            fold.click()
        top(page, "#exchange")
        kept(page, "serve-compare-dark")

        for scheme in ("light", "dark"):
            page = opened(browser, address, 360, 780, color_scheme=scheme)
            ask(page)
            page.evaluate("document.querySelector('.thinking').open = true")
            top(page, "#exchange")
            kept(page, f"serve-phone-{scheme}")
        browser.close()


if __name__ == "__main__":
    main()
