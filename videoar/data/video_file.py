"""What can be wrong with a video file, and how a file is put in place whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class VideoError(ValueError):
    """A file that cannot be read or written; the message names it and says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = Path(path), reason

    def __reduce__(self):
        return VideoError, (self.path, self.reason)  # so that a data loader's worker can send it


def check_file(path: Path) -> Path:
    """Returns the path of a file that holds at least a byte.

    Raises:
        VideoError: It is missing, a folder or a device, not readable, or empty.
    """
    try:
        if not path.exists():
            raise VideoError(path, "does not exist")
        if not path.is_file():
            raise VideoError(path, "is not a file")
        with path.open("rb") as file:
            if not file.read(1):
                raise VideoError(path, "is empty (0 bytes)")
    except OSError as error:
        raise VideoError(path, f"cannot be opened: {error.strerror}") from error
    return path


@contextmanager
def replaced_when_done(path: Path) -> Iterator[Path]:
    """Yields a temporary name in the same folder; it becomes `path` if the block succeeds, and vanishes if not."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise VideoError(path, f"cannot be written: {error.strerror}") from error
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
