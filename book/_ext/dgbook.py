"""The book's Sphinx extension: pages that ask no other host for anything, also opened as files.

Before chapters run, it asks `dgprune_book.figures.explorer` for explorers that work without a
kernel.

When pages are written it

- leaves out sphinx-thebe's scripts, which the theme adds twice, which ask a CDN, and which throw on
  every page when no kernel is offered;
- puts a short note where a widget stood that brings no HTML of its own, because a page without a
  kernel cannot run it, and leaves out the stored state of widgets;
- leaves out the theme's preloading of fonts, which a browser refuses for pages opened from a disk
  (the style sheet loads the same fonts);
- lets scripts wait until the page is drawn, above all 1.5 MB that draw icons;
- offers Colab, Binder and a notebook to download only where a notebook lies beside the page;
- makes the bibliography a list of list items (its entries' role is no longer one of the standard),
  and of the parameters of a signature plain text (a list of definitions needs terms);
- puts the notebooks made for Colab where the download button looks, in place of ones full of
  directives that Jupyter does not know;
- writes a minus sign before a number, and keeps a per cent sign with its own, outside of code;
- lets the keyboard reach code, outputs and tables wider than the screen, to scroll them;
- puts a lecturer's own links (`lecture_links` in `_config.yml`) below the title of a page.
"""

from __future__ import annotations

import html
import os
import re
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

_WIDGET_VIEW = re.compile(
    r'<script type="application/vnd\.jupyter\.widget-view\+json">.*?</script>', re.DOTALL
)
_FONT_PRELOAD = re.compile(r'<link rel="preload" as="font"[^>]*>\s*')
# The first of Sphinx's scripts must run at once: later ones in the page itself change its values.
_EAGER_SCRIPT = re.compile(
    r'<script(?= [^>]*src="(?![^"]*documentation_options))(?![^>]*\bdefer\b)'
)
_NEGATIVE = re.compile(r"(?<![\w.-])-(?=\d)")
_PER_CENT = re.compile(r"(?<=\d) (?=%)")
_PARAMETERS = re.compile(r"<dl>\s*((?:<dd>(?:(?!<d[dlt]>).)*?</dd>\s*)+)</dl>", re.DOTALL)
_LIVE_ONLY = (
    '<p class="dg-live-only" role="note">A widget stands here when you run this chapter in '
    "Jupyter. This page has no kernel to run it.</p>"
)
# The theme does this for code and outputs once, and again when the window has changed for a while;
# what is unfolded later, and wide tables, it leaves out of the keyboard's reach.
_SCROLLABLE = """
addEventListener("DOMContentLoaded", () => {
  const sizes = new ResizeObserver((changed) => {
    for (const { target } of changed) {
      if (target.scrollWidth > target.clientWidth || target.scrollHeight > target.clientHeight) {
        target.tabIndex = 0;
      } else target.removeAttribute("tabindex");
    }
  });
  const scrollable = "pre, .cell_output > .output, .pst-scrollable-table-container";
  for (const element of document.querySelectorAll(scrollable)) sizes.observe(element);
});
"""


def replace_widgets(body: str) -> str:
    """Return the page's HTML with a note in place of every widget that has no HTML."""
    return _WIDGET_VIEW.sub(_LIVE_ONLY, body)


def mend_lists(body: str) -> str:
    """Return the page's HTML with lists whose parts are what the standard wants.

    >>> mend_lists('<div class="citation" id="id1" role="doc-biblioentry">')
    '<div class="citation" id="id1" role="listitem">'
    >>> mend_lists("<dt>f(<dl><dd>a,</dd><dd>b,</dd></dl>)</dt>")
    '<dt>f(<span class="dg-parameter">a,</span><span class="dg-parameter">b,</span>)</dt>'
    """
    body = body.replace(' role="doc-biblioentry"', ' role="listitem"')
    return _PARAMETERS.sub(
        lambda found: (
            found[1].replace("<dd>", '<span class="dg-parameter">').replace("</dd>", "</span>")
        ),
        body,
    )


def is_unwanted(file: Any) -> bool:
    """Tell sphinx-thebe's files, and the stored state of widgets, from the others."""
    attributes = getattr(file, "attributes", None) or {}
    return (
        "sphinx-thebe" in str(getattr(file, "filename", file))
        or "THEBE_JS_URL" in (attributes.get("body") or "")
        or "widget-state" in (attributes.get("type") or "")
    )


def without_notebook(buttons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a page's buttons, and those of its menus, without those that need its notebook.

    >>> without_notebook([{"label": "launch-buttons", "buttons": [{"text": "Colab"}]},
    ...     {"buttons": [{"label": "download-notebook-button"}, {"label": "download-pdf-button"}]}])
    [{'buttons': [{'label': 'download-pdf-button'}]}]
    """
    kept = []
    for button in buttons:
        if button.get("label") not in ("launch-buttons", "download-notebook-button"):
            menu = {"buttons": without_notebook(button["buttons"])} if "buttons" in button else {}
            kept.append(button | menu)
    return kept


def add_links(body: str, links: dict[str, str]) -> str:
    """Return the page's HTML with a list of links, by title, below its heading; as it was if none.

    >>> add_links("<h1>Risk</h1><p>It is</p>", {"Video": "https://example.edu/4"})
    '<h1>Risk</h1><p class="dg-links"><a href="https://example.edu/4">Video</a></p><p>It is</p>'
    """
    shown = " · ".join(
        f'<a href="{html.escape(url)}">{html.escape(title)}</a>' for title, url in links.items()
    )
    return body.replace("</h1>", f'</h1><p class="dg-links">{shown}</p>', 1) if links else body


def typeset(text: str) -> str:
    """Return text with minus signs before numbers, and with per cent signs that stay with theirs.

    >>> typeset("-0.5 points, a 2-fold gain of 50 %")
    '−0.5 points, a 2-fold gain of 50\\xa0%'
    """
    return _PER_CENT.sub("\N{NO-BREAK SPACE}", _NEGATIVE.sub("−", text))


def _typeset_page(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for element in list(doctree.findall(nodes.TextElement)):
        if isinstance(element, nodes.literal | nodes.FixedTextElement | nodes.math):
            continue
        for place, child in enumerate(element.children):
            if isinstance(child, nodes.Text):
                element[place] = nodes.Text(typeset(child))


def _finish_page(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not is_unwanted(file)]
    if not Path(app.srcdir, f"{pagename}.ipynb").is_file():
        context["header_buttons"] = without_notebook(context.get("header_buttons", []))
    if "body" in context:
        links: dict[str, dict[str, str]] = app.config.lecture_links
        own = links.get("all", {}) | links.get(Path(pagename).name, {})
        context["body"] = add_links(mend_lists(replace_widgets(context["body"])), own)


def defer_scripts(page: str) -> str:
    """Return the page with scripts that do not keep it from being drawn.

    >>> defer_scripts('<script src="a.js"></script><script>let b;</script></head>')
    '<script defer src="a.js"></script><script>let b;</script></head>'
    """
    head, end, rest = page.partition("</head>")
    return _EAGER_SCRIPT.sub("<script defer", head) + end + rest


def _finish_files(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    for path in Path(app.outdir).rglob("*.html"):
        if Path(app.outdir, "_static") in path.parents:
            continue
        text = path.read_text(encoding="utf-8")
        kept = defer_scripts(_FONT_PRELOAD.sub("", text))
        if kept != text:
            path.write_text(kept, encoding="utf-8")
    for notebook in Path(app.srcdir).glob("book/*.ipynb"):
        download = Path(app.outdir, "_sources", "book", notebook.name)
        if download.is_file():
            shutil.copyfile(notebook, download)


def setup(app: Sphinx) -> dict[str, bool]:
    os.environ["DGPRUNE_STATIC"] = "1"  # the kernels that run the chapters inherit it
    app.add_config_value("lecture_links", {}, "html")
    app.connect("doctree-resolved", _typeset_page)
    app.connect("html-page-context", _finish_page, priority=900)
    app.add_js_file(None, body=_SCROLLABLE)
    app.connect("build-finished", _finish_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
