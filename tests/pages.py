"""What is wrong with an open page: letters in fonts of the machine, what a phone cuts off."""

from __future__ import annotations

from typing import Any

# What the page draws in each look (family, style and weight of letters) anywhere: its text, open or
# folded, what fields and style sheets say, but not what is only read aloud.
LOOKS = """() => {
  const looks = new Map();
  const note = (style, text) => {
    const look = [style.fontFamily, style.fontStyle, style.fontWeight].join("|");
    if (!looks.has(look)) looks.set(look, new Set());
    for (const letter of text) if (letter.trim()) looks.get(look).add(letter);
  };
  for (const element of document.querySelectorAll("body, body *")) {
    if (element.closest("script, style, noscript, template, mjx-assistive-mml")) continue;
    const style = getComputedStyle(element);
    note(style, element.placeholder ?? "");
    for (const child of element.childNodes) {
      if (child.nodeType === Node.TEXT_NODE) note(style, child.data);
    }
    if (element instanceof SVGElement) continue; // it has nothing before or after it
    for (const place of ["::before", "::after"]) {
      const made = getComputedStyle(element, place);
      if (/^"/.test(made.content)) note(made, made.content.slice(1, -1));
    }
  }
  return [...looks].map(([look, letters]) => [look, [...letters].join("")])
    .filter(([, letters]) => letters);
}"""
SHOW = """async (samples) => {
  document.getElementById("samples")?.remove();
  const place = document.body.appendChild(document.createElement("div"));
  place.id = "samples";
  for (const [look, letters] of samples) {
    const sample = place.appendChild(document.createElement("p"));
    [sample.style.fontFamily, sample.style.fontStyle, sample.style.fontWeight] = look.split("|");
    sample.textContent = letters;
  }
  place.getBoundingClientRect(); // now it asks for the fonts
  await document.fonts.ready;
}"""

PHONES = (360, 320)  # CSS pixels
# What a narrow screen cuts off: the page itself, or what neither wraps nor scrolls in its box.
TOO_WIDE = """() => {
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const fits = (element) => {
    let box = element;
    while (box.tagName !== "BODY" && !scrolls(box)) box = box.parentElement;
    if (box.tagName === "BODY") [box] = [element];
    const whole = scrolls(box) || box.scrollWidth <= box.clientWidth + 1;
    return whole && box.getBoundingClientRect().right <= innerWidth;
  };
  const boxes = document.querySelectorAll("article :is(dt.sig, pre, table)");
  return [document.scrollingElement, ...boxes]
    .filter((e) => e === document.scrollingElement ? e.scrollWidth > innerWidth : !fits(e))
    .map((e) => `${innerWidth} px: ${e.outerHTML.slice(0, 120)}`);
}"""

Samples = list[tuple[str, str]]  # a look, and letters


def machine_letters(page: Any) -> dict[str, str]:
    """The letters that no font of the page has, by their look; nothing if all is well.

    The page gets a paragraph for each look at its end.
    """
    page.evaluate("() => window.MathJax?.startup?.promise")
    incomplete = _shown_by_machine(page, page.evaluate(LOOKS))
    single = [(look, letter) for look, letters in incomplete for letter in letters]
    missing: dict[str, str] = {}
    for look, letter in _shown_by_machine(page, single):
        missing[look] = missing.get(look, "") + letter
    return missing


def _shown_by_machine(page: Any, samples: Samples) -> Samples:
    """Those samples for which Chromium takes a font that the page does not bring."""
    page.evaluate(SHOW, samples)
    session = page.context.new_cdp_session(page)
    session.send("DOM.enable")
    session.send("CSS.enable")
    root = session.send("DOM.getDocument")["root"]["nodeId"]
    shown = session.send("DOM.querySelectorAll", {"nodeId": root, "selector": "#samples p"})
    found = []
    for sample, node in zip(samples, shown["nodeIds"], strict=True):
        fonts = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        if not all(font["isCustomFont"] for font in fonts):
            found.append(sample)
    session.detach()
    return found


def too_wide_on_phones(page: Any) -> list[str]:
    """What reaches over the edge of its box or of a narrow screen; the screen stays narrow."""
    found = []
    for width in PHONES:
        page.set_viewport_size({"width": width, "height": 740})
        page.wait_for_timeout(200)
        found += page.evaluate(TOO_WIDE)
    return found
