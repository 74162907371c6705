"""Captions of a folder's clips: from text files, one list, file names or class folders."""

from __future__ import annotations

import json
from pathlib import Path

CAPTION_SOURCES = ("auto", "sidecar", "metadata", "name", "folder", "none")
_KEYS = ("text", "caption", "prompt")


class FolderCaptions:
    """Gives the caption of a path, "" where there is none; `source` as in `VideoFolder`."""

    def __init__(self, root: Path, source: str) -> None:
        self.source = source
        self._listed: dict[Path, str] = {}
        table = root / "metadata.jsonl"
        if source == "metadata" or (source == "auto" and table.is_file()):
            self._listed = _read_table(table)

    def __getitem__(self, path: Path) -> str:
        if self.source == "none":
            return ""
        if self.source == "name":
            return _words(path.stem)
        if self.source == "folder":
            return _words(path.parent.name)
        listed = self._listed.get(path)
        if listed is not None or self.source == "metadata":
            return listed or ""
        sidecar = path.with_suffix(".txt")
        if not sidecar.is_file():
            return ""
        return " ".join(sidecar.read_text(encoding="utf-8", errors="replace").split())


def _read_table(table: Path) -> dict[Path, str]:
    """Reads lines such as {"file_name": "a/b.mp4", "text": "a dog"}, as Hugging Face's folder data sets have them."""
    if not table.is_file():
        raise ValueError(f"VideoFolder: captions='metadata' needs {table}, which does not exist")
    captions = {}
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            captions[table.parent / row["file_name"]] = next(str(row[key]) for key in _KEYS if key in row)
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ValueError(
                f'VideoFolder: {table}, line {number}: expected {{"file_name": ..., "text": ...}}, got {line[:80]}'
            ) from None
    return captions


def _words(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("-", " ").split())
