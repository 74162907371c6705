"""Configuration of paper U's backbone, the shape of Wan 2.1's transformer, and its presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import prod


@dataclass(frozen=True)
class BackboneConfig:
    """Shape of a next-unit transformer; the defaults are Wan 2.1's 1.3B (wan_t2v_1_3B).

    Args:
        width: residual width C.
        depth: number of blocks.
        heads: attention heads; `width // heads` is the head dimension, split over (t, h, w) as Wan does.
        ffn_width: hidden width of the feed-forward network.
        channels: latent channels, in and out.
        patch: (p_t, p_h, p_w) latent cells a token.
        freq_dim: width of the timestep's sinusoids.
        text_width: width of the text features.
        text_len: text tokens; shorter prompts are padded with zeros, which are attended, as in Wan.
        cross_norm: an affine layer norm before the cross-attention.
        levels: levels of a `multiscale` pyramid, each with an embedding of its own (zero at first); 0: other units.
        eps: of every norm.
        theta: base of the rotary frequencies.
    """

    width: int = 1536
    depth: int = 30
    heads: int = 12
    ffn_width: int = 8960
    channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    text_width: int = 4096
    text_len: int = 512
    cross_norm: bool = True
    levels: int = 0
    eps: float = 1e-6
    theta: float = 10000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch", tuple(int(size) for size in self.patch))
        if self.width % self.heads or self.head_dim % 2:
            raise ValueError(
                f"BackboneConfig: expected width to be heads times an even number, got {self.width} and {self.heads}"
            )
        if self.freq_dim % 2:
            raise ValueError(f"BackboneConfig: expected an even freq_dim, got {self.freq_dim}")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def patch_width(self) -> int:
        """Numbers in one token."""
        return prod(self.patch) * self.channels

    def to_dict(self) -> dict:
        return asdict(self)

    def replace(self, **changes) -> BackboneConfig:
        return replace(self, **changes)


PRESETS: dict[str, BackboneConfig] = {
    "1.3B": BackboneConfig(),
    # The built-in sprites on two cores.
    "sprites": BackboneConfig(
        width=192,
        depth=5,
        heads=3,
        ffn_width=384,
        channels=16,
        patch=(1, 1, 1),
        freq_dim=64,
        text_width=128,
        text_len=8,
    ),
    # Tests and smoke runs.
    "tiny": BackboneConfig(
        width=64, depth=2, heads=2, ffn_width=96, channels=4, freq_dim=32, text_width=24, text_len=6
    ),
}


def preset(name: str, **changes) -> BackboneConfig:
    """A preset by name, with fields replaced.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name].replace(**changes)
