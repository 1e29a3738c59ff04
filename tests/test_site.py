"""The built site in a browser: what a reader would stumble over. `scripts/browser` installs what it takes."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parent.parent
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS, TALLEST = (1400, 400), 12_000

# What is wider than the box that shows it, and pictures that did not come.
CUT = """() => [...document.querySelectorAll('article *')].filter(e =>
    (getComputedStyle(e).overflowX !== 'visible' && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1)
    || (e.tagName === 'IMG' && e.complete && e.naturalWidth === 0)
).map(e => `${e.tagName}.${e.className}: ${(e.innerText || e.src || '').slice(0, 80)}`)"""
SIZE = "() => [document.documentElement.scrollWidth, document.documentElement.scrollHeight]"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site, built strictly and served, and its folder."""
    pytest.importorskip("mkdocs", reason="needs the extra `check`")
    pytest.importorskip("playwright", reason="needs the extra `browser`")
    if BROWSER is None:
        pytest.skip("needs a browser, as of `apt-get install chromium`")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


def pages(folder):
    """All addresses, but of the sources only one, since they are alike."""
    found = [path.parent.relative_to(folder).as_posix() for path in sorted(folder.rglob("index.html"))]
    return [page for page in found if not page.startswith("source/") or page.endswith("_adam.py")]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_whole(site, browser, width):
    address, folder = site
    page = browser.new_page(viewport={"width": width, "height": 900})
    faults, here = [], ""
    page.on("console", lambda message: message.type == "error" and faults.append(f"{here}: console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"{here}: error: {error}"))
    page.on(
        "request",
        lambda request: (
            urlsplit(request.url).hostname not in ("127.0.0.1", None) and faults.append(f"{here}: asks {request.url}")
        ),
    )
    for here in pages(folder):
        page.goto(f"{address}{here}/", wait_until="load")
        wide, tall = page.evaluate(SIZE)
        faults += [f"{here}: scrolls sideways, {wide} pixels at {width}"] * (wide > width)
        faults += [f"{here}: {tall} pixels high at {width}: make two pages of it"] * (tall > TALLEST)
        faults += [f"{here}: cut at {width}: {what}" for what in page.evaluate(CUT)]
    page.close()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("warmup", "warmup_cosine_decay_schedule"),
        ("weight decay", "add_decayed_weights"),
        ("muon", "muon"),
        ("gradient clipping", "clip_by_global_norm"),
    ],
)
def test_search_finds_names_by_their_words(site, browser, words, name):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(site[0], wait_until="load")
    page.fill("input.md-search__input", words)
    page.wait_for_selector(".md-search-result__item")
    shown = page.locator(".md-search-result__list").inner_text()
    hidden = page.evaluate("() => [...document.querySelectorAll('.md-search-result__link')].map(e => e.href).join(' ')")
    page.close()
    assert re.search(rf"\b{name}\b", shown + hidden)


def test_what_is_copied_has_no_prompts(site, browser):
    page = browser.new_page()
    page.goto(f"{site[0]}api/optimizers/adam/", wait_until="load")
    copied = page.evaluate(
        """() => { const e = [...document.querySelectorAll('pre code')].find(e => e.innerText.includes('>>>'));
        e.setAttribute('data-md-copying', ''); return e.innerText }"""
    )
    page.close()
    assert ">>>" not in copied
    assert "tensor([" not in copied.splitlines()[-1]
    assert "import torch" in copied


def test_maths_names_sources_and_papers(site):
    """What the build adds: equations, links from tables to names, sources, papers, versions."""
    folder = site[1]
    adam = (folder / "api/optimizers/adam/index.html").read_text()
    assert "<mfrac>" in adam
    assert "https://arxiv.org/abs/1412.6980" in adam
    assert re.search(r'href="[./]+source/optimfn/_algorithms/adam/_adam.py/#L-\d+"', adam)
    assert 'class="version"' in adam
    optax = (folder / "coming-from-optax/index.html").read_text()
    assert optax.count('href="api/') > 100 or optax.count('href="../api/') > 100
