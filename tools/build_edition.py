"""Build an edition of the book beside the reader's, which `make book` builds.

    python tools/build_edition.py student       into _build/student/html
    python tools/build_edition.py instructor    into _build/instructor/html

It is Jupyter Book's own build, with two folders chosen: that of the pages, and that of the executed
chapters, which all editions share. What the editions hold: book/_ext/editions.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EDITIONS = ("reader", "student", "instructor")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("edition", choices=EDITIONS)
    parser.add_argument("--builder", default="html", help="Sphinx's builder (default: html)")
    parser.add_argument("--source", type=Path, default=ROOT, help="the book's top level")
    parser.add_argument("--build", type=Path, help="the build folder (default: _build)")
    options = parser.parse_args(arguments)
    source = options.source.resolve()
    build = (options.build or source / "_build").resolve()
    output = build / options.edition / options.builder
    os.environ["DGPRUNE_EDITION"] = options.edition

    from jupyter_book.sphinx import build_sphinx

    result = build_sphinx(
        source,
        output,
        builder=options.builder,
        path_config=source / "_config.yml",
        noconfig=True,
        warningiserror=True,
        keep_going=True,
        confoverrides={
            "external_toc_path": str(source / "_toc.yml"),
            "latex_individualpages": False,
            "nb_execution_cache_path": str(build / ".jupyter_cache"),
            "nitpicky": True,
        },
    )
    if result:
        print(f"The {options.edition} edition does not build; the cause stands above.")
    return 1 if result else 0


if __name__ == "__main__":
    sys.exit(main())
