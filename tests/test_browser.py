"""The built book in a real browser: every page, on a desk, on a phone and on paper."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from chromium import Browser, find_browser

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
AUDIT = (Path(__file__).parent / "audit.js").read_text()
DESK, PHONE, PAPER = 1300, 390, 718  # pixels; paper: A4 between margins of 1 cm
PAGE_BYTES, SITE_BYTES = 2_000_000, 40_000_000
# The theme preloads its icon fonts "crossorigin", which no browser grants to a file; the style
# sheet loads them a moment later.
HARMLESS = re.compile(r"fontawesome.*file:|file:.*fontawesome")

pytestmark = pytest.mark.browser


def _is_current(site: Path) -> bool:
    """Tell whether a built site is newer than every source of the book."""
    mark = site / "searchindex.js"
    sources = (p for p in BOOK.rglob("*") if "_build" not in p.parts and p.is_file())
    return mark.is_file() and all(p.stat().st_mtime < mark.stat().st_mtime for p in sources)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Return the built book: the one at hand where it is current, else one of our own."""
    if _is_current(BOOK / "_build/html"):
        return BOOK / "_build/html"
    folder = tmp_path_factory.mktemp("book")
    source = folder / "book"
    shutil.copytree(BOOK, source, ignore=shutil.ignore_patterns("_build"))
    program = str(Path(sys.executable).with_name("jupyter-book"))
    words = [program, "build", "-W", "-n", "--keep-going", str(source)]
    made = subprocess.run(words, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
    return source / "_build/html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Open one browser for all tests; skip, or fail if asked, where there is none."""
    if not (program := find_browser()):
        reason = "no Chromium is found (install chromium, or set DSNB_BROWSER to its path)"
        if "browser" in os.environ.get("DSNB_REQUIRE", ""):
            pytest.fail(reason)
        pytest.skip(reason)
    opened = Browser(program, tmp_path_factory.mktemp("chromium") / "profile")
    yield opened
    opened.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that writes no log."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    """Serve the site on this machine; return its address."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def _pages(site: Path) -> list[str]:
    found = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(str(path) for path in found if path.parts[0] != "_static")


def _complaints(events: list[dict]) -> list[str]:
    """Return what a page threw, logged as an error, or asked of another machine."""
    told = []
    for event in events:
        kind, what = event.get("method"), event.get("params", {})
        if kind == "Network.requestWillBeSent":
            url = what["request"]["url"]
            if not url.startswith(("data:", "blob:", "about:", "file:", "http://127.0.0.1:")):
                told.append(f"asks for {url[:200]}")
        error = what.get("type") == "error" or what.get("entry", {}).get("level") == "error"
        if kind == "Runtime.exceptionThrown" or (error and not HARMLESS.search(str(what))):
            thrown = what.get("exceptionDetails", {}).get("exception", {})
            told.append(thrown.get("description") or str(what)[:400])
    return told


def _look(browser: Browser, page: str, width: int, phone: bool = False) -> tuple[dict, list[str]]:
    """Open a page; return what tests/audit.js saw, and the faults of any page at any width."""
    browser.open(page, width, phone)
    seen = browser.run(f"({AUDIT})()")
    checks = ("broken", "mute", "unset", "failed", "raw", "blank", "cut")
    faults = _complaints(browser.events) + [
        f"{name}: {seen[name]}" for name in checks if seen[name]
    ]
    return seen, faults + ([f"scrolls sideways by {seen['overflow']}"] * (seen["overflow"] > 0))


def _dead_links(seen: dict[str, dict], site: Path, address: str) -> dict[str, list[str]]:
    """Return the links of every page {address: seen} that lead to no file or no anchor of it."""
    faults = {}
    for page, what in seen.items():
        told = faults[page.removeprefix(address)] = []
        for link, anchor in map(urldefrag, what["links"]):
            if link.startswith(address):
                link += "index.html" * link.endswith("/")
                there = link in seen or (site / unquote(link.removeprefix(address))).is_file()
                if not there or (anchor and link in seen and anchor not in seen[link]["ids"]):
                    told.append(f"leads nowhere: {link}#{anchor}")
    return faults


def _judge(faults: dict[str, list[str]]) -> None:
    told = "\n".join(f"{page}: {word}" for page, words in faults.items() for word in words)
    assert not told, told


def test_every_page_is_whole_on_a_desk_and_its_links_resolve(site, browser, address):
    """Falls: that no page fails, asks the network, lacks a picture, a formula, a viewer, a link."""
    faults, seen = {}, {}
    for page in _pages(site):
        seen[address + page], faults[page] = _look(browser, address + page, DESK)
    for page, told in _dead_links(seen, site, address).items():
        faults[page] += told
    _judge(faults)
    total = {
        name: sum(what[name] for what in seen.values()) for name in ("maths", "images", "frames")
    }
    assert min(total.values()) > 0, f"nothing was there to be judged: {total}"


def test_every_page_fits_a_phone(site, browser):
    """Falls: that a page can be read on a phone, from files, without scrolling it sideways."""
    looks = {page: _look(browser, (site / page).as_uri(), PHONE, True) for page in _pages(site)}
    assert all(seen["wide"] == PHONE for seen, _ in looks.values())
    _judge({page: told for page, (_, told) in looks.items()})


def test_every_page_prints_with_its_pictures_and_without_viewers(site, browser, address):
    """Falls: that a printed page is legible: nothing cut off, its text is text, no dead viewer."""
    faults = {}
    browser.send("Emulation.setEmulatedMedia", media="print")
    for page in _pages(site):
        seen, told = _look(browser, address + page, PAPER)
        told = [word for word in told if not word.startswith("blank")]  # a viewer is not printed
        pdf = browser.print(paperWidth=8.27, paperHeight=11.69, marginLeft=0.394, marginRight=0.394)
        sheets = len(re.findall(rb"/Type /Page\b", pdf))
        if not (sheets and b"/ToUnicode" in pdf and seen["size"] >= 12):
            told.append(f"{sheets} sheets, {len(pdf)} bytes, {seen['size']} px")
        faults[page] = told + ["a viewer is printed"] * (seen["framesShown"] > 0)
    browser.send("Emulation.setEmulatedMedia", media="")
    _judge(faults)


@pytest.mark.parametrize("served", [True, False], ids=["served", "files"])
def test_search_finds_the_pages_of_a_word(site, browser, address, served):
    """Falls: that a reader finds a word of the book, served or opened as files."""
    browser.open((address if served else f"{site.as_uri()}/") + "search.html?q=hippocampus", DESK)
    script = """new Promise(async (done) => {
      const found = () => [...document.querySelectorAll("#search-results li a")].map((a) => a.href);
      for (let tries = 0; tries < 100 && found().length < 3; tries++)
        await new Promise((next) => setTimeout(next, 50));
      done(found()); })"""
    found = browser.run(script)
    assert len(found) >= 3, found
    # Of a file, a browser denies a script the text that it would show below each result.
    assert not served or not _complaints(browser.events)


def test_pages_and_site_are_small(site):
    """Falls: that a page is under 2 MB and the whole site under 40 MB."""
    sizes = {str(p.relative_to(site)): p.stat().st_size for p in site.rglob("*") if p.is_file()}
    assert not {name: size for name, size in sizes.items()
                if name.endswith(".html") and size > PAGE_BYTES}  # fmt: skip
    assert sum(sizes.values()) < SITE_BYTES


def test_faults_that_are_planted_are_found(tmp_path, browser):
    """Falls: that the tests above would see what they look for."""
    (tmp_path / "bad.html").write_text(
        "<html><head><title>x</title></head><body><article><p>costs $$ x $$</p>"
        '<img src="none.png" alt="x"><img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'
        '<span class="math">\\(x\\)</span><iframe srcdoc="<canvas></canvas>"></iframe>'
        '<div style="width:2000px">wide</div><a href="gone.html">x</a><a href="#gone">x</a>'
        '<a href="#here" id="here">x</a></article>'
        '<script src="http://example.org/a.js"></script><script>undefined_name()</script>'
        "</body></html>"
    )
    page, here = (tmp_path / "bad.html").as_uri(), f"{tmp_path.as_uri()}/"
    seen, faults = _look(browser, page, PHONE)
    dead = _dead_links({page: seen}, tmp_path, here)["bad.html"]
    assert dead == [f"leads nowhere: {here}gone.html#", f"leads nowhere: {page}#gone"]
    told = "\n".join(faults)
    for word in ("asks for http://example.org", "undefined_name", "broken", "mute", "unset", "raw",
                 "blank", "cut: ", "scrolls sideways"):  # fmt: skip
        assert word in told, f"{word} was not found in {told}"
