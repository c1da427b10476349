"""A real browser, driven by its command line: how a page lays out, and whether it complains."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --enable-logging=stderr --virtual-time-budget=4000"
).split()

# Each page is put in a frame of the width asked for: a window cannot be as narrow as a phone.
# What sticks out counts unless it is inside something that scrolls or hides.
_PROBE = """<!doctype html><body style="margin:0">
FRAMES
<script>
const look = frame => {
  const page = frame.contentDocument, view = frame.contentWindow, width = frame.clientWidth;
  const contained = element => {
    for (let e = element.parentElement; e; e = e.parentElement)
      if (e !== page.body && view.getComputedStyle(e).overflowX !== "visible") return true;
    return false;
  };
  const all = [...page.querySelectorAll("body *")];
  const out = all.filter(e => e.getBoundingClientRect().right > width + 0.5 && !contained(e));
  const apart = (a, b) => a.right <= b.left + 1 || b.right <= a.left + 1 ||
    a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
  const plot = svg => {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(
      e => [e.textContent, e.getBoundingClientRect()]);
    const over = [];
    texts.forEach(([s, a], i) => texts.slice(i + 1).forEach(([t, b]) => {
      if (!apart(a, b)) over.push(s + " / " + t);
    }));
    const cut = texts.filter(([, r]) => r.left < frame.left - 1 || r.right > frame.right + 1 ||
      r.top < frame.top - 1 || r.bottom > frame.bottom + 1).map(([s]) => s);
    const {width, height} = frame;
    return {label: svg.getAttribute("aria-label"), width, height, over, cut};
  };
  const handled = e => [...e.attributes].some(a => a.name.startsWith("on"));
  return {
    title: page.title,
    width: page.documentElement.scrollWidth,
    out: out.map(e => e.tagName + "." + e.className),
    scripts: page.scripts.length,
    handlers: all.filter(handled).length,
    images: [...page.images].map(i => i.naturalWidth),
    cards: page.querySelectorAll("article").length,
    plots: [...page.querySelectorAll("svg")].map(plot).filter(p => p.width),
    path: [...page.querySelectorAll(".card.won")].map(
      e => Math.round(e.getBoundingClientRect().top + view.scrollY)),
  };
};
onload = () => {
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
  document.body.append(result);
};
</script>"""


def probe(pages: list[tuple[str, int]]) -> tuple[list[dict], list[str]]:
    """What the browser makes of each page at its width in pixels, and what it says on the console.

    One browser looks at all of them: starting it takes longer than looking.
    """
    frames = "".join(
        f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for page, width in pages
    )
    done = _run(_PROBE.replace("FRAMES", frames, 1), "--window-size=1600,1000", "--dump-dom")
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser gave no result: {done.stderr[-2000:]}"
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def followed(page: str, fragment: str) -> str:
    """The document after a link to one of its parts was followed."""
    return _run(page, "--dump-dom", fragment=fragment).stdout


def printed(page: str) -> bytes:
    """The page as a PDF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.pdf"
        _run(page, f"--print-to-pdf={path}", "--no-pdf-header-footer")
        return path.read_bytes()


def _run(page: str, *flags: str, fragment: str = "") -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(page, "utf-8")
        address = path.as_uri() + (f"#{fragment}" if fragment else "")
        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder}/profile", *flags, address]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
