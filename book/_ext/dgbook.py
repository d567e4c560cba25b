"""The book's Sphinx extension: pages that ask no other host for anything, also opened as files.

Before chapters run, it asks `dgprune_lite.explorer` for explorers that work without a kernel.

When pages are written it

- leaves out sphinx-thebe's scripts, which the theme adds twice, which ask a CDN, and which throw on
  every page when no kernel is offered;
- puts a short note where a widget stood that brings no HTML of its own, because a page without a
  kernel cannot run it, and leaves out the stored state of widgets;
- leaves out the theme's preloading of fonts, which a browser refuses for pages opened from a disk
  (the style sheet loads the same fonts).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_WIDGET_VIEW = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-view\+json">.*?</script>', re.DOTALL
)
_FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')
_LIVE_ONLY = (
    '<p class="dg-live-only" role="note">A widget stands here when you run this chapter in '
    "Jupyter. This page has no kernel to run it.</p>"
)


def replace_widgets(body: str) -> str:
    """Return the page's HTML with a note in place of every widget that has no HTML."""
    return _WIDGET_VIEW.sub(_LIVE_ONLY, body)


def is_unwanted(file: Any) -> bool:
    """Tell sphinx-thebe's files, and the stored state of widgets, from the others."""
    attributes = getattr(file, "attributes", None) or {}
    return (
        "sphinx-thebe" in str(getattr(file, "filename", file))
        or "THEBE_JS_URL" in (attributes.get("body") or "")
        or "widget-state" in (attributes.get("type") or "")
    )


def _finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not is_unwanted(file)]
    if "body" in context:
        context["body"] = replace_widgets(context["body"])


def _drop_font_preloads(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        kept = _FONT_PRELOAD.sub("", text)
        if kept != text:
            path.write_text(kept, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    os.environ["DGPRUNE_STATIC"] = "1"  # the kernels that run the chapters inherit it
    app.connect("html-page-context", _finish_page, priority=900)
    app.connect("build-finished", _drop_font_preloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
