"""The network in the reader's page: the same answers as PyTorch, fast, and for everybody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from chromium import launch
from dgprune_book.figures import network_page

from dgprune_lite import trace_channels

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "book" / "_static" / "network"
PAGE = (FOLDER / "index.html").as_uri()  # a file, not a server: nothing can be fetched

# Keeps what the page and its worker say to each other.
RECORD = """
  window.sent = []; window.heard = [];
  const Real = window.Worker;
  window.Worker = class extends Real {
    constructor(...all) {
      super(...all);
      const note = ({ data }) => window.heard.push({ at: performance.now(), ...data });
      this.addEventListener("message", note);
    }
    postMessage(message) {
      window.sent.push({ at: performance.now(), ...message });
      super.postMessage(message);
    }
  };
"""


class Tab:
    """A page of Chromium. What `tab(steps)` calls runs in the browser's own thread."""

    def __init__(self, thread: ThreadPoolExecutor, chromium: Any, **options: Any) -> None:
        self._thread, self.problems = thread, []
        self.context = thread.submit(chromium.new_context, **options).result()
        self._page = thread.submit(self._new_page).result()

    def _new_page(self) -> Any:
        self.context.route("**/*", self._only_files)
        page = self.context.new_page()
        page.on("console", lambda m: m.type == "error" and self.problems.append(m.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("requestfailed", lambda request: self.problems.append(request.url))
        return page

    def _only_files(self, route: Any) -> None:
        if route.request.url.startswith(("file:", "blob:", "data:")):
            route.continue_()
        else:
            self.problems.append(f"asks for {route.request.url}")
            route.abort()

    def __call__(self, steps: Callable[[Any], Any]) -> Any:
        return self._thread.submit(steps, self._page).result()

    def close(self) -> None:
        self._thread.submit(self.context.close).result()


@pytest.fixture(scope="module")
def new_tab(chromium_path: str) -> Iterator[Callable[..., Tab]]:
    """Make tabs. Playwright allows one browser a thread, and the book's other tests have theirs."""
    from playwright.sync_api import sync_playwright

    tabs = []
    with ThreadPoolExecutor(1) as thread:
        playwright = thread.submit(lambda: sync_playwright().start()).result()
        chromium = thread.submit(launch, playwright, chromium_path).result()

        def make(url: str = PAGE, script: str = RECORD, **options: Any) -> Tab:
            tab = Tab(thread, chromium, **options)
            tabs.append(tab)
            tab(lambda page: page.add_init_script(script))
            tab(lambda page: page.goto(url))
            return tab

        yield make
        for tab in tabs:
            tab.close()
        thread.submit(chromium.close).result()
        thread.submit(playwright.stop).result()


@pytest.fixture(scope="module")
def tab(new_tab: Callable[..., Tab]) -> Tab:
    """One page for all tests that leave it running."""
    tab = new_tab()
    tab(wait)
    return tab


@pytest.fixture(scope="module")
def page_in_python() -> network_page.Export:
    return network_page.read(FOLDER / "data.js")


def wait(page: Any) -> None:
    page.wait_for_selector("#dg-network[aria-busy=false]")


def set_page(
    page: Any,
    unseen: str = "mnist_m",
    criterion: str = "l1",
    ratio: float = 0.0,
    clicks: tuple[tuple[str, int], ...] = (),
    recalibrate: bool = False,
) -> dict[str, Any]:
    """Choose a setting as a reader does; returns what the page got to know at the end."""
    page.select_option("#dg-unseen", unseen)
    page.select_option("#dg-criterion", criterion)
    page.locator("#dg-ratio").fill(str(round(20 * ratio)))
    page.locator("#dg-recalibrate").set_checked(recalibrate)
    for layer, number in clicks:
        page.get_by_label(f"{layer}, filter {number}", exact=True).click()
    wait(page)
    return page.evaluate("heard.filter((message) => message.finished).at(-1)")


def alone(test: Callable[..., None]) -> Callable[..., None]:
    """Takes seconds, and one browser is enough for all such tests."""
    return pytest.mark.slow(pytest.mark.xdist_group("network")(test))


# --- The same numbers as PyTorch ------------------------------------------------------------

UNSEEN = ("mnist", "mnist_m", "optdigits", "syn")
CLICKS = (
    (("conv1", 0),),
    (("conv2", 3), ("conv2", 4), ("conv3", 15)),
    (("conv1", 1), ("conv3", 0)),
)
RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
SETTINGS = [
    {"unseen": unseen, "criterion": criterion, "ratio": ratio, "recalibrate": recalibrate}
    for unseen in UNSEEN
    for criterion, ratio, recalibrate in [
        *zip(network_page.CRITERIA, RATIOS, (False, True) * 2 + (False,), strict=True),
        ("fisher", 0.3, False),
        ("risk_variance", 0.3, False),
        ("l1", 0.0, True),
    ]
]
SETTINGS += [
    {"unseen": unseen, "ratio": 0.25, "clicks": clicks, "recalibrate": len(clicks) == 2}
    for unseen in ("mnist_m", "syn")
    for clicks in CLICKS
]
SETTINGS += [  # a whole layer
    {"unseen": "syn", "clicks": tuple(("conv2", number) for number in range(16))},
    {"unseen": "mnist", "clicks": tuple(("conv1", n) for n in range(8)), "recalibrate": True},
]


def removed_by(page: network_page.Export, setting: dict[str, Any]) -> dict[str, list[int]]:
    gone = page.removed(
        setting["unseen"], setting.get("criterion", "l1"), setting.get("ratio", 0.0)
    )
    for layer, number in setting.get("clicks", ()):
        gone[layer] = sorted({*gone[layer]} ^ {number})
    return gone


@alone
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: " ".join(str(v) for v in s.values()))
def test_every_answer_is_that_of_pytorch(tab, page_in_python, setting):
    message = tab(lambda page: set_page(page, **setting))
    removed, recalibrate = removed_by(page_in_python, setting), setting.get("recalibrate", False)
    expected = page_in_python.predict(setting["unseen"], removed, recalibrate=recalibrate)
    assert message["after"] == {name: classes.tolist() for name, classes in expected.items()}

    graph = trace_channels(page_in_python.networks["mnist"], torch.zeros(1, 3, 28, 28))
    gone = torch.zeros(graph.num_filters, dtype=torch.bool)
    for layer, filters in removed.items():
        gone[[graph.groups[layer].start + number for number in filters]] = True
    assert message["multiplications"] == graph.totals(gone.numpy())[1]

    accuracy = page_in_python.accuracy(setting["unseen"], removed, recalibrate=recalibrate)
    for name, share in accuracy.items():
        shown = tab(
            lambda page, row=name: page.inner_text(f"tr[data-domain={row}] .dg-number >> nth=0")
        )
        assert shown == f"{round(100 * share)} %"
        role = tab(lambda page, row=name: page.inner_text(f"tr[data-domain={row}] .dg-role"))
        assert role == ("unseen" if name == setting["unseen"] else "in-domain")


@alone
def test_flips_are_listed(tab, page_in_python):
    tab(lambda page: set_page(page, "syn", "fisher", 0.1))
    before = page_in_python.predict("syn", {})
    after = page_in_python.predict("syn", page_in_python.removed("syn", "fisher", 0.1))
    labels = {name: data.tensors[1] for name, data in page_in_python.images.items()}
    worse = {n: int(((before[n] == y) & (after[n] != y)).sum()) for n, y in labels.items()}
    shown = tab(lambda page: page.inner_text(".dg-flips + h3 >> xpath=preceding-sibling::p[1]"))
    assert shown.startswith(f"{sum(worse.values())} images went from right to wrong")
    assert ", ".join(f"{name} {number}" for name, number in worse.items()) in shown
    assert tab(lambda page: page.locator(".dg-flip").count()) == min(24, sum(worse.values()))


@alone
def test_a_drawing_is_classified_by_both_networks(tab, page_in_python):
    def draw(page):
        set_page(page, "mnist", "l1", 0.3)
        sheet = page.locator(".dg-sheet")
        sheet.scroll_into_view_if_needed()
        box = sheet.bounding_box()
        page.mouse.move(box["x"] + 100, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 130, steps=5)
        page.mouse.up()
        page.wait_for_function("heard.at(-1).picture === sent.at(-1).picture")
        return page.evaluate("[sent.at(-1).pixels, heard.at(-1).before, heard.at(-1).after]")

    pixels, before, after = tab(draw)
    image = torch.tensor(pixels).view(1, 3, 28, 28)
    assert 0 <= image.min() <= 0.1 < 0.9 < image.max() <= 1
    with torch.no_grad():
        expected = page_in_python.networks["mnist"](image).softmax(1)[0]
    torch.testing.assert_close(torch.tensor(before), expected, atol=1e-5, rtol=0)
    assert after != before
    guesses = tab(lambda page: page.locator(".dg-guess").all_inner_texts())
    assert guesses == [str(torch.tensor(p).argmax().item()) for p in (before, after)]
    tab(lambda page: page.click("text=Clear"))
    assert tab(lambda page: page.locator(".dg-guess").all_inner_texts()) == ["–", "–"]


# --- Speed ------------------------------------------------------------------------------------


def timed(page: Any, ratio: float) -> dict[str, float]:
    """Milliseconds from a move of the slider to the first number and to the last, in the page."""
    page.locator("#dg-ratio").fill(str(round(20 * (0.9 - ratio))))
    wait(page)
    page.evaluate("sent.length = heard.length = 0")
    page.locator("#dg-ratio").fill(str(round(20 * ratio)))
    wait(page)
    return page.evaluate(
        "({ first: heard[0].at - sent[0].at, last: heard.at(-1).at - sent[0].at,"
        "   images: heard.at(-1).milliseconds })"
    )


@alone
@pytest.mark.parametrize("recalibrate", [False, True])
def test_it_is_fast_and_pruning_makes_it_faster(tab, recalibrate):
    tab(lambda page: set_page(page, recalibrate=recalibrate))
    whole = [tab(lambda page: timed(page, 0.0)) for _ in range(4)]  # the best: machines are busy
    pruned = [tab(lambda page: timed(page, 0.75)) for _ in range(4)]
    tab(lambda page: set_page(page))
    assert min(run["first"] for run in whole) < 150
    assert min(run["last"] for run in whole) < 1000
    assert min(r["images"] for r in pruned) < 0.5 * min(r["images"] for r in whole)


@alone
def test_a_move_stops_the_run_before_it(tab):
    def move(page):
        set_page(page, "mnist_m", "l1")
        page.evaluate("sent.length = heard.length = 0")
        page.evaluate(
            """async () => {
              const slider = document.getElementById("dg-ratio");
              for (const value of [0, 1, 0, 1, 0, 2]) {
                slider.value = value;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
                await new Promise((resume) => setTimeout(resume, 40));
              }
            }"""
        )
        wait(page)
        page.wait_for_timeout(500)  # would anything come late?
        return page.evaluate("[sent.map((m) => m.run), heard]")

    runs, heard = tab(move)
    assert len(runs) == 6
    assert [message["run"] for message in heard if message.get("finished")] == runs[-1:]
    assert len({message["run"] for message in heard}) > 1  # the others had begun
    order = [message["run"] for message in heard]
    assert order == sorted(order)  # and said nothing once they were stopped


def tasks(page: Any, steps: Callable[[Any], None]) -> list[float]:
    """Milliseconds of processor time of each task on the page's own thread during some steps.

    Processor time, not the clock's: a task that only waits for its turn on a busy machine is none
    of the page's doing.
    """
    chromium = page.context.browser
    chromium.start_tracing(page=page, categories=["toplevel"])
    steps(page)
    events = json.loads(chromium.stop_tracing())["traceEvents"]
    own = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        event["tdur"] / 1000
        for event in events
        if event["ph"] == "X" and "tdur" in event and (event["pid"], event["tid"]) in own
    ]


def open_and_move(page: Any) -> None:
    page.reload()
    wait(page)
    for ratio in (0.1, 0.3, 0.5, 0.7, 0.9):
        set_page(page, "syn", "fisher", ratio)


@alone
def test_the_pages_own_thread_has_no_long_task(new_tab):
    """From opening the page on, while the slider moves."""
    fresh = new_tab()
    longest = []
    for _ in range(3):  # a processor that others slow down counts more time, too
        found = fresh(lambda page: tasks(page, open_and_move))
        assert len(found) > 100
        longest.append(max(found))
        if longest[-1] <= 50:
            return
    pytest.fail(f"the longest tasks take {longest} ms")


@alone
def test_a_long_task_would_be_found(new_tab):
    busy = "() => { const end = performance.now() + 400; while (performance.now() < end); }"
    listen = f"addEventListener('keydown', {busy})"

    def work(page):
        page.evaluate(listen)
        page.keyboard.press("Shift")
        page.wait_for_timeout(100)

    assert max(new_tab()(lambda page: tasks(page, work))) > 50


# --- For everybody ----------------------------------------------------------------------------


@alone
def test_nothing_is_asked_of_others_and_no_error_is_logged(tab):
    tab(lambda page: set_page(page, "optdigits", "random", 0.5))
    assert tab.problems == []


@alone
def test_all_works_with_the_keyboard_alone(new_tab, page_in_python):
    fresh = new_tab()
    fresh(wait)

    def keys(page):
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "document.activeElement.id || document.activeElement.ariaLabel"
                    " || document.activeElement.textContent"
                )
            )
            here = seen[-1]
            if here == "dg-ratio":
                for _ in range(4):
                    page.keyboard.press("ArrowRight")
                wait(page)
            if here == "conv1, filter 0":  # arrows move within a layer, Space switches
                page.keyboard.press("ArrowRight")
                page.keyboard.press("Space")
                wait(page)
            if "taken for" in here and "chosen" not in seen:
                page.keyboard.press("Enter")
                seen.append("chosen")
            if here == "dg-number":
                page.keyboard.press("ArrowUp")
                break
        page.wait_for_timeout(200)
        return seen

    seen = fresh(keys)
    assert {"dg-unseen", "dg-criterion", "dg-ratio", "dg-recalibrate", "chosen", "dg-number"} <= {
        *seen
    }
    assert sum("filter" in name and "conv" in name for name in seen) == 3  # one tab stop a layer
    gone = page_in_python.removed("mnist_m", "l1", 0.2)["conv1"]
    label = "conv1, filter 1"  # switched: there if L1 took it out
    pressed = fresh(lambda page: page.get_by_label(label).first.get_attribute("aria-pressed"))
    assert pressed == ("true" if 1 in gone else "false")
    sent = fresh(lambda page: page.evaluate("sent"))
    assert len([message for message in sent if "run" in message]) >= 6
    assert {"domain", "index"} <= {*sent[-1]}
    assert "–" not in fresh(lambda page: page.locator(".dg-guess").all_inner_texts())


@alone
def test_every_control_has_a_name_and_results_are_announced(tab):
    tab(lambda page: set_page(page, "mnist_m", "l1", 0.2))
    nameless = tab(lambda page: page.eval_on_selector_all(
        "#dg-network :is(button, input, select, canvas[role])",
        "all => all.filter(e => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))"
        ".map(e => e.outerHTML)",
    ))  # fmt: skip
    assert nameless == []
    tab(lambda page: page.wait_for_timeout(1000))
    said = tab(lambda page: page.inner_text("#dg-network [role=status]"))
    assert "unseen mnist_m" in said
    changes = tab(lambda page: page.evaluate(
        """async () => {
          let changes = 0;
          const status = document.querySelector("#dg-network [role=status]");
          new MutationObserver(() => changes++).observe(status, { childList: true });
          const slider = document.getElementById("dg-ratio");
          for (let value = 0; value < 19; value++) {
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
            await new Promise((resume) => setTimeout(resume, 100));
          }
          await new Promise((resume) => setTimeout(resume, 1500));
          return changes;
        }"""
    ))  # fmt: skip
    assert changes == 1  # not one for each step


@alone
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(new_tab, scheme):
    fresh = new_tab(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    fresh(lambda page: set_page(page, "mnist_m", "l1", 0.3))
    assert fresh(lambda page: page.evaluate("document.scrollingElement.scrollWidth")) <= 360
    inside = fresh(lambda page: page.eval_on_selector_all(
        "#dg-network *", "all => all.filter(e => e.getBoundingClientRect().right > 360).length"
    ))  # fmt: skip
    assert inside == 0


def height_of_the_steered(page: Any) -> float:
    """Pixels from the top of the controls to the end of the images that changed."""
    return page.evaluate(
        """() => document.querySelector(".dg-flips").getBoundingClientRect().bottom
           - document.querySelector("#dg-network .dg-controls").getBoundingClientRect().top"""
    )


@alone
def test_slider_filters_and_images_fit_one_screen(new_tab):
    fresh = new_tab(viewport={"width": 1280, "height": 900})
    fresh(lambda page: set_page(page, "mnist_m", "l1", 0.9))
    assert fresh(lambda page: page.locator(".dg-flip").count()) == 24
    assert fresh(height_of_the_steered) <= 900


@alone
def test_unseen_differs_by_more_than_colour(tab):
    tab(lambda page: set_page(page, "mnist_m", "l1", 0.3))
    look = "all => all.map(e => getComputedStyle(e).backgroundImage)"
    looks = tab(lambda page: page.eval_on_selector_all(".dg-table .dg-bar", look))
    bars = dict(zip(UNSEEN, looks, strict=True))
    assert "gradient" in bars.pop("mnist_m")
    assert set(bars.values()) == {"none"}


@alone
def test_nothing_moves_by_itself():
    style = (FOLDER / "page.css").read_text()
    assert "transition" not in style
    assert "animation" not in style


@alone
def test_without_javascript_there_is_a_message(new_tab):
    fresh = new_tab(java_script_enabled=False)
    assert "needs JavaScript" in fresh(lambda page: page.inner_text("#dg-network"))


@alone
def test_it_runs_where_workers_are_refused(new_tab, page_in_python):
    refuse = "window.Worker = class { constructor() { throw new Error('refused'); } };"
    fresh = new_tab(script=refuse)
    fresh(wait)
    assert fresh.problems == []
    accuracy = page_in_python.accuracy("mnist_m", {})
    for name, share in accuracy.items():
        shown = fresh(
            lambda page, row=name: page.inner_text(f"tr[data-domain={row}] .dg-number >> nth=0")
        )
        assert shown == f"{round(100 * share)} %"


# --- In the built book ------------------------------------------------------------------------


@pytest.mark.book
@pytest.mark.slow
@pytest.mark.xdist_group("book")
@pytest.mark.parametrize("width", [1280, 360])
def test_it_runs_in_the_built_chapter(book, new_tab, page_in_python, width):
    url = (book.html / "book" / "09_prune_it_yourself.html").as_uri()
    fresh = new_tab(url, viewport={"width": width, "height": 900})
    setting = {"unseen": "optdigits", "criterion": "fisher", "ratio": 0.3}
    message = fresh(lambda page: set_page(page, **setting))
    expected = page_in_python.predict("optdigits", removed_by(page_in_python, setting))
    assert message["after"] == {name: classes.tolist() for name, classes in expected.items()}
    assert fresh(lambda page: page.evaluate("document.scrollingElement.scrollWidth")) <= width
    assert width < 1280 or fresh(height_of_the_steered) <= 900 - 56  # below the bar of buttons
    assert fresh.problems == []
