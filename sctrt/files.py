"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


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


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; NumPy numbers become Python's."""
    with replaced_when_whole(path) as file:
        file.write((json.dumps(content, indent=2, default=float) + "\n").encode())
