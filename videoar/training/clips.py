"""Training clips by step number: the same step of the same seed is the same batch, in a resumed run too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from videoar.data.folder import VideoFolder
from videoar.data.pixels import from_uint8
from videoar.data.sprites import SpriteConfig, sample_batch


@dataclass(frozen=True)
class ClipsConfig:
    """Where clips come from.

    Args:
        kind: `"sprites"` (built in) or `"folder"` (a user's video files).
        path: of the folder.
        frames: per clip.
        size: height and width in pixels.
        rate: frames per second that a folder's videos are resampled to; None keeps each file's own.
        wrap: of sprites, see `SpriteConfig`.
    """

    kind: str = "sprites"
    path: str | None = None
    frames: int = 17
    size: int = 64
    rate: float | None = None
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("sprites", "folder"):
            raise ValueError(f"ClipsConfig: expected kind 'sprites' or 'folder', got {self.kind!r}")
        if (self.kind == "folder") != (self.path is not None):
            raise ValueError("ClipsConfig: expected a path for kind 'folder', and only for it")

    @property
    def sprites(self) -> SpriteConfig:
        """The built-in data of this size."""
        return SpriteConfig(frames=self.frames, size=self.size, wrap=self.wrap)


def clip_batches(
    config: ClipsConfig, batch: int, seed: int, *, rank: int = 0, world: int = 1
) -> Callable[[int], Tensor]:
    """A function from step number to this process's batch of videos (B, 3, T, H, W) in [-1, 1]."""
    if config.kind == "folder":
        source = VideoFolder(config.path, frames=config.frames, size=config.size, fps=config.rate).sample_batch
    else:
        source = partial(sample_batch, config=config.sprites)

    def draw(step: int) -> Tensor:
        return from_uint8(source(batch, seed, (step * world + rank) * batch).video)

    return draw
