"""A user's folder of clips as training data: any size, rate and codec, nested as it likes, images among them.

Clip i of a seed is drawn from its own Philox counters, so a batch depends on (seed, index) and the files alone.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from videoar.data.folder_captions import CAPTION_SOURCES, FolderCaptions
from videoar.data.video import IMAGE_SUFFIXES, Size, VideoError, VideoInfo, probe_video, read_video

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".gif", ".ts", ".m2ts", ".mts")
    + (".3gp", ".ogv", ".h264")
)
_DRAWS = 4  # uniform numbers per clip, one Philox counter of four words
_WHOLE_CLIP = 64 * 2**20  # bytes of resized frames above which a clip is not kept in memory


class FolderBatch(NamedTuple):
    """A batch of clips: `video` (B, T, H, W, 3) uint8, their captions ("" where there is none) and files."""

    video: Tensor
    captions: list[str]
    paths: list[Path]


class VideoFolder:
    """Random windows of the videos and images under a folder.

    A window is `frames` consecutive frames at the rate `fps`, scaled to cover `size` and cropped at the centre. A
    clip shorter than a window holds its last frame; an image is a still video. Files that cannot be read are skipped,
    with a warning that names them.

    Args:
        path: The folder; hidden files and unknown suffixes are ignored.
        frames: Frames per window.
        size: Height and width in pixels; one number: a square.
        fps: Frames per second that videos are resampled to; None keeps each file's average rate.
        captions: Where captions come from: "auto" (metadata.jsonl, else a .txt beside the clip), "sidecar" (.txt),
            "metadata" (metadata.jsonl in the folder: {"file_name": ..., "text": ...} a line), "name" (of the file),
            "folder" (name of the folder it lies in: the class, as in UCF-101) or "none".
        memory: Bytes of resized clips to keep, so that short ones are decoded once.

    Raises:
        VideoError: No such folder, or it holds no file that can be read.
        ValueError: An argument is out of range, or metadata.jsonl is missing or malformed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frames: int = 17,
        size: Size = 64,
        fps: float | None = None,
        captions: str = "auto",
        memory: int = 512 * 2**20,
    ) -> None:
        if frames < 1 or (fps is not None and not fps > 0):
            raise ValueError(f"VideoFolder: expected frames >= 1 and fps > 0, got {frames} and {fps}")
        if captions not in CAPTION_SOURCES:
            raise ValueError(f"VideoFolder: expected captions among {CAPTION_SOURCES}, got {captions!r}")
        self.path, self.frames, self.size, self.fps, self.memory = Path(path), frames, size, fps, memory
        self.clips = _readable(self.path)  # in the order of their paths
        self.captions = FolderCaptions(self.path, captions)
        self._kept: dict[Path, Tensor] = {}
        self._lock = threading.Lock()
        self._warned: set[Path] = set()

    def __len__(self) -> int:
        return len(self.clips)

    def sample_batch(self, batch: int, seed: int, index: int = 0) -> FolderBatch:
        """Draws the windows index, index + 1, ..., index + batch - 1 of a seed.

        Args:
            batch: Number of windows.
            seed: Which endless sequence of windows, 0 to 2**64 - 1.
            index: The first window.

        Raises:
            VideoError: None of the files can be read (any more).
        """
        if batch < 1 or index < 0:
            raise ValueError(f"VideoFolder.sample_batch: expected batch >= 1, index >= 0, got {batch} and {index}")
        words = np.random.Philox(key=seed, counter=index * _DRAWS // 4).random_raw(batch * _DRAWS)
        uniform = (words >> 11).astype(np.float64).reshape(batch, _DRAWS) * 2.0**-53
        drawn = [self._draw(which, where) for which, where in uniform[:, :2].tolist()]
        paths = [path for path, _ in drawn]
        return FolderBatch(torch.stack([video for _, video in drawn]), [self.captions[path] for path in paths], paths)

    def _draw(self, which: float, where: float) -> tuple[Path, Tensor]:
        clips = list(self.clips)
        first = int(which * len(clips))
        for path in clips[first:] + clips[:first]:
            try:
                return path, self._window(path, self.clips[path], where)
            except VideoError as error:
                if path not in self._warned:
                    self._warned.add(path)
                    warnings.warn(f"VideoFolder: skipped {error}", stacklevel=4)
        raise VideoError(self.path, f"has no file left that can be read, of {len(clips)}")

    def _window(self, path: Path, info: VideoInfo, where: float) -> Tensor:
        """Returns (T, H, W, 3); `where` in [0, 1) says how far into the clip."""
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return self._held(read_video(path, size=self.size).frames)
        rate = self.fps or info.fps or 25.0
        start = int(where * max(round(info.seconds * rate) - self.frames + 1, 1))
        whole = self._whole(path, info, rate)
        if whole is not None:
            return self._held(whole[min(start, len(whole) - 1) :][: self.frames])
        return self._held(read_video(path, self.frames, size=self.size, fps=rate, start=start / rate).frames)

    def _held(self, video: Tensor) -> Tensor:
        return torch.cat([video, video[-1:].expand(self.frames - len(video), -1, -1, -1)])

    def _whole(self, path: Path, info: VideoInfo, rate: float) -> Tensor | None:
        """Returns all frames of a clip that is short enough to keep, decoded once."""
        if path in self._kept:
            return self._kept[path]
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        needed = int(info.seconds * rate + 1) * height * width * 3
        # A file that does not say how long it is may last forever.
        if not info.seconds > 0 or needed > min(_WHOLE_CLIP, self.memory - self.bytes_kept):
            return None
        video = read_video(path, size=self.size, fps=rate).frames
        with self._lock:
            self._kept[path] = video
        return video

    @property
    def bytes_kept(self) -> int:
        """Bytes of decoded clips in memory."""
        with self._lock:
            return sum(video.nbytes for video in self._kept.values())

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_lock": None, "_kept": {}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class FolderDataset(IterableDataset):
    """Endless batches of a `VideoFolder`, dealt out over ranks and loader workers as `SpriteDataset` does.

    Args:
        folder: Where the windows come from.
        batch: Windows per step on this rank.
        seed: Which endless sequence of windows.
        rank, world: This process and how many there are.
        start: The first step.
    """

    def __init__(
        self, folder: VideoFolder, batch: int, seed: int, *, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        super().__init__()
        if not 0 <= rank < world:
            raise ValueError(f"FolderDataset: expected 0 <= rank < world, got {rank} and {world}")
        self.folder, self.batch, self.seed = folder, batch, seed
        self.rank, self.world, self.start = rank, world, start

    def __iter__(self) -> Iterator[FolderBatch]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self.start + first
        while True:
            yield self.folder.sample_batch(self.batch, self.seed, (step * self.world + self.rank) * self.batch)
            step += stride


def _readable(root: Path) -> dict[Path, VideoInfo]:
    """Returns the files whose header can be read, some milliseconds each; warns once about the others."""
    if not root.is_dir():
        raise VideoError(root, "is not a folder")
    known = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    paths = sorted(path for path in _files(root) if path.suffix.lower() in known)
    if not paths:
        raise VideoError(root, "holds no video and no image")
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_probe, paths))
    bad = [error for error in found if isinstance(error, VideoError)]
    if len(bad) == len(found):
        raise VideoError(root, f"holds no file that can be read, of {len(found)}; the first: {bad[0]}")
    if bad:
        warnings.warn(
            f"VideoFolder: skipped {len(bad)} of {len(found)} files: " + "; ".join(map(str, bad)), stacklevel=3
        )
    return {path: info for path, info in zip(paths, found, strict=True) if isinstance(info, VideoInfo)}


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _probe(path: Path) -> VideoInfo | VideoError:
    try:
        return probe_video(path)
    except VideoError as error:
        return error
