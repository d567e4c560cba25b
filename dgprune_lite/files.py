"""Files that are written in one piece or not at all, and tensors read from them."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from torch import Tensor


def write_atomically(
    path: str | os.PathLike[str], content: str | bytes, *, replace: bool = True
) -> bool:
    """Write a file so that others see all of it or none; return whether it was written.

    The folder is made if it is not there; text becomes UTF-8, its line ends as they are. Of several
    writers, in threads, processes or machines, the last wins, or with ``replace=False`` the first.
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
            try:
                os.link(temporary, path)  # unlike os.replace, fails if the name is taken
                return True
            except OSError:
                # The name is taken, or the file system has no hard links. Then what is left is a
                # moment between look and rename.
                if path.exists():
                    return False
        os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, writer: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file that ``writer`` wrote."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}; expected one that {writer} wrote")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} is not a whole safetensors file ({error}); was it cut short? Write "
            f"it again with {writer}"
        ) from error
