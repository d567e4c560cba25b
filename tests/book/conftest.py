"""Build the book once for all tests here, and open its pages in Chromium with no network."""

from __future__ import annotations

import contextlib
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chromium import NO_CHROMIUM, find_chromium, launch
from pages import machine_letters, too_wide_on_phones

ROOT = Path(__file__).parent.parent.parent
BUILD_FLAGS = ["-W", "--keep-going", "-n"]  # the Makefile's; tests/test_repository.py compares them

# Not "Math input error", nor the name of an unknown command in red.
DRAWN_FORMULA = (
    "article .math mjx-container:not(:has(mjx-merror)):not(:has(mjx-mtext[style*='red']))"
)

FIRST_PAINT = """() => new Promise((done) => {
  const look = (list) => list.getEntriesByName("first-contentful-paint")
    .forEach((entry) => done(entry.startTime));
  new PerformanceObserver(look).observe({ type: "paint", buffered: true });
})"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The book's build is the longest piece of work, so it starts first."""
    items.sort(key=lambda item: item.get_closest_marker("book") is None)


@dataclass(frozen=True)
class Build:
    returncode: int
    log: str
    html: Path

    def seconds(self, page: str) -> float:
        """How long the execution of a chapter took."""
        match = re.search(
            rf"{re.escape(page)}\.md: Executed notebook in ([\d.]+) seconds", self.log
        )
        assert match, f"{page} was not executed:\n{self.log[-3000:]}"
        return float(match[1])


@pytest.fixture(scope="session")
def build_book() -> Callable[[Path, Path], Build]:
    """The function that builds a source folder into an output folder."""
    return _build


def _build(source: Path, output: Path) -> Build:
    """Run the Makefile's build command, with nothing of this process's Python set-up."""
    dropped = {"MPLBACKEND", "PYTHONPATH", "PYTHONWARNINGS", "JUPYTER_PATH", "JUPYTER_CONFIG_DIR"}
    dropped |= {"DGPRUNE_EDITION"}
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    result = subprocess.run(
        [*command, str(source), *BUILD_FLAGS, "--path-output", str(output)],
        cwd=source,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = re.sub(r"\x1b\[[\d;]*m", "", result.stdout)
    return Build(result.returncode, log, output / "_build" / "html")


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The real book, built from scratch outside the checkout's own _build."""
    result = _build(ROOT, tmp_path_factory.mktemp("book"))
    if result.returncode:
        pytest.fail(f"the book does not build:\n{result.log[-8000:]}", pytrace=False)
    return result


@dataclass(frozen=True)
class Visit:
    """What a browser saw when it opened a page."""

    errors: list[str]  # console errors, uncaught exceptions, files that are not there
    outside: list[str]  # addresses asked of other hosts
    images_without_alt: list[str]
    formulas: int
    formulas_drawn: int
    too_wide_on_phone: list[str]
    distorted_on_phone: list[str]  # images that lost their shape
    machine_letters: dict[str, str]  # what no font of the page has


class Browser:
    """Chromium, and a server for the built pages; every request to another host is refused."""

    def __init__(self, browser: object, address: str) -> None:
        self._browser, self._address, self._visits = browser, address, {}

    def visit(self, page: str, base: str | None = None) -> Visit:
        url = f"{base or self._address}/{page}.html"
        if url not in self._visits:
            self._visits[url] = self._open(url)
        return self._visits[url]

    @contextlib.contextmanager
    def open(self, url: str, **options: object) -> Iterator[tuple[object, list[str], list[str]]]:
        """A loaded page, and what it will have logged as errors and asked of other hosts."""
        errors, outside = [], []
        context = self._browser.new_context(
            **{"viewport": {"width": 1200, "height": 900}} | options
        )

        def gate(route: object) -> None:
            target = route.request.url
            if target.startswith((self._address, "file:", "data:", "blob:")):
                route.continue_()
            else:
                outside.append(target)
                route.abort()

        context.route("**/*", gate)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
        page.on(
            "response",
            lambda answer: answer.status >= 400 and errors.append(f"{answer.status}: {answer.url}"),
        )
        page.goto(url if ":" in url else f"{self._address}/{url}.html", wait_until="load")
        try:
            yield page, errors, outside
        finally:
            context.close()

    def first_paint(self, page: str) -> float:
        """Milliseconds until the first text or image of a page shows, with an empty cache."""
        context = self._browser.new_context()  # routes would slow every request down
        try:
            tab = context.new_page()
            tab.goto(f"{self._address}/{page}.html", wait_until="commit")
            return tab.evaluate(FIRST_PAINT)
        finally:
            context.close()

    def _open(self, url: str) -> Visit:
        with self.open(url) as (page, errors, outside):
            return self._look_at(page, errors, outside)

    def _look_at(self, page: object, errors: list[str], outside: list[str]) -> Visit:
        page.evaluate("() => window.MathJax?.startup?.promise")
        page.wait_for_timeout(300)  # scripts that start late
        visit = {
            "images_without_alt": page.eval_on_selector_all(
                "article img, article svg[role=img]",
                "all => all.filter(e => !(e.alt ?? e.getAttribute('aria-label') ?? '')"
                ".trim()).map(e => e.outerHTML.slice(0, 200))",
            ),
            "formulas": page.locator("article .math").count(),
            "formulas_drawn": page.locator(DRAWN_FORMULA).count(),
        }
        too_wide = too_wide_on_phones(page)
        distorted = page.eval_on_selector_all(
            "article img",
            "all => all.filter(e => Math.abs(e.naturalWidth / e.naturalHeight"
            " - e.clientWidth / e.clientHeight) > 0.05).map(e => e.alt)",
        )
        return Visit(
            errors=errors,
            outside=outside,
            too_wide_on_phone=too_wide,
            distorted_on_phone=distorted,
            machine_letters=machine_letters(page),
            **visit,
        )


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Where Chromium is. Without one nothing is known of the pages, so their tests fail."""
    return find_chromium() or pytest.fail(NO_CHROMIUM)


@pytest.fixture(scope="session")
def chromium(chromium_path: str) -> Iterator[object]:
    """Chromium itself, one for all tests of a worker."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = launch(playwright, chromium_path)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def open_folder(chromium: object) -> Callable[[Path], Browser]:
    """The function that gives a browser for pages opened from a disk: nothing else may be asked."""
    return lambda folder: Browser(chromium, folder.resolve().as_uri())


@pytest.fixture(scope="session")
def browser(book: Build, chromium: object) -> Iterator[Browser]:
    handler = functools.partial(_QuietHandler, directory=str(book.html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Browser(chromium, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
