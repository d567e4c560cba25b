"""Write a file in one piece or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, *, replace: bool = True
) -> bool:
    """Write a file so that others see all of it or none; return whether it was written.

    The content, bytes or text (as UTF-8, with its line ends as they are), goes to a hidden file in
    the same folder, which is made if it is not there, and gets its name once all is on the disk.
    Several writers may write the same path, in threads, processes or machines: the last one wins,
    or with ``replace=False`` the first. After an OSError, what was there before is still there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "seeds.txt")
    ...     write_atomically(path, "0 1 2"), write_atomically(path, "3", replace=False)
    ...     path.read_text()
    (True, False)
    '0 1 2'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # unique on shared disks, too
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not replace:
            return _name_first(temporary, path)
        os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _name_first(temporary: Path, path: Path) -> bool:
    """Give a whole file its name unless there is one of that name; say whether it got it."""
    try:
        os.link(temporary, path)  # unlike os.replace, fails if the name is taken
        return True
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links. What is left is a moment between look and rename.
        if path.exists():
            return False
        os.replace(temporary, path)
        return True
