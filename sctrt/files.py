"""Files and folders that are written whole or not at all, and by one at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

LOCK = ".lock"


@contextlib.contextmanager
def replaced_when_whole(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`, which takes its name when the block ends well and else vanishes."""
    temporary = path.with_name(f".sctrt-{secrets.token_hex(8)}.tmp")  # beside it: a rename must not cross file systems
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_replaced_when_whole(path: Path) -> Iterator[Path]:
    """Makes a temporary folder beside `path`, which takes its name when the block ends well and else vanishes.

    An older folder of that name stays until then, and comes back where the renaming fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp leaves it to its owner alone
        _put_in_place(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(new: Path, path: Path) -> None:
    if not path.exists():
        os.replace(new, path)
        return
    old = new.with_name(f"{new.name}.old")
    os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(old, path)
        raise
    if old.is_symlink():
        old.unlink()  # what it names stays
    else:
        shutil.rmtree(old)


def locked(folder: Path, wait: bool = False) -> BinaryIO:
    """Keeps others out of a folder until the file that is returned is closed, or the process ends, however it ends.

    The file stays where it is: without it, one could lock a name that another has locked and removed. On a file system
    that knows no locks, nobody is kept out.

    Args:
        folder: is made where it is not there.
        wait: until others are done.

    Raises:
        ValueError: another has locked it, and this one does not wait.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        raise ValueError(
            f"expected a folder that no other run writes to, got {folder}; wait for it to end, or choose another folder"
        ) from None
    except OSError:
        pass
    return file


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8."""
    with replaced_when_whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; NumPy numbers become Python's."""
    write_text(path, json.dumps(content, indent=2, default=float) + "\n")
