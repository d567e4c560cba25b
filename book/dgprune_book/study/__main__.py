"""The command line: ``python -m dgprune_book.study --help``."""

import sys

from dgprune_book.study.command import main

if __name__ == "__main__":
    sys.exit(main())
