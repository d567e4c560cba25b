"""Write a file in one piece or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file by new content, so that others see the old file or the new one, never a part.

    The content goes to a hidden file beside it, which is moved over it once all is on the disk.
    Several writers may write the same path, in threads, processes or machines: the last one wins.

    Args:
        path: The file; its folder must exist.
        content: Bytes, or text, which is written as UTF-8 with its line ends as they are.

    Raises:
        OSError: It cannot be written; what was there before is still there, and nothing else.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder, "seeds.txt"), "0 1 2")
    ...     [(file.name, file.read_text()) for file in Path(folder).iterdir()]
    [('seeds.txt', '0 1 2')]
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # unique on shared disks, too
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
