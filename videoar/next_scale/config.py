"""Configuration of paper S's transformer and its presets."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

Scales = tuple[tuple[int, int], ...]


def square_scales(*sides: int) -> Scales:
    """A pyramid of square scales, coarse to fine: `square_scales(1, 2, 4)` is ((1, 1), (2, 2), (4, 4))."""
    return tuple((side, side) for side in sides)


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a next-scale transformer.

    Args:
        width: residual width C.
        depth: number of blocks.
        heads: query heads; `width // heads` is the head dimension.
        kv_heads: key-value heads (grouped queries); None means as many as query heads.
        ffn_multiple: hidden width of the SwiGLU as a multiple of `width` (paper S: 4).
        bits: d, bits a token.
        scales: (h, w) of every scale, coarse to fine, in latent cells.
        frames: latent frames of a training clip.
        text_len: tokens of the text prefix.
        text_width: width of the conditioner's features.
        context: what a frame sees of its predecessor at its input. "paper": only the mean that starts it
            (Sec. 4.2); "resampled": also its accumulated feature at every scale.
        pooled_text: add the pooled text to every video token.
        qk_norm: RMS-normalise queries and keys per head.
        align: "index" is Eq. 7; "grid" spreads the coarse scales over the finest grid, as its relatives do.
        window: how many earlier frames a frame sees; None means all.
        theta: base of the rotary frequencies.
    """

    width: int = 1536
    depth: int = 24
    heads: int = 12
    kv_heads: int | None = None
    ffn_multiple: float = 4.0
    bits: int = 48
    scales: Scales = ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    frames: int = 5
    text_len: int = 1
    text_width: int = 1536
    context: Literal["paper", "resampled"] = "resampled"
    pooled_text: bool = False
    qk_norm: bool = True
    align: Literal["index", "grid"] = "index"
    window: int | None = None
    theta: float = 10000.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple((int(h), int(w)) for h, w in self.scales))
        if self.width % self.heads:
            raise ValueError(f"TransformerConfig: expected width divisible by heads, got {self.width} and {self.heads}")
        if self.heads % self.key_heads:
            raise ValueError(
                f"TransformerConfig: expected heads divisible by kv_heads, got {self.heads} and {self.kv_heads}"
            )
        if self.context not in ("paper", "resampled"):
            raise ValueError(f"TransformerConfig: expected context 'paper' or 'resampled', got {self.context!r}")

    @property
    def key_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def ffn_width(self) -> int:
        """Hidden width of the SwiGLU, a multiple of 8."""
        return 8 * round(self.ffn_multiple * self.width / 8)

    @property
    def tokens_per_frame(self) -> int:
        return sum(h * w for h, w in self.scales)

    def to_dict(self) -> dict:
        return asdict(self)

    def replace(self, **changes) -> TransformerConfig:
        return replace(self, **changes)


# L and XL are the class-conditional UCF-101 models; 4B reads a T5-XL (2048 wide) at 512 tokens (App. A).
PRESETS: dict[str, TransformerConfig] = {
    "L": TransformerConfig(width=1536, depth=24, heads=12, text_width=1536),
    "XL": TransformerConfig(width=2048, depth=32, heads=16, text_width=2048),
    "4B": TransformerConfig(width=2560, depth=36, heads=32, text_len=512, text_width=2048),
    # A laptop GPU trains this one on the UCF-101 shape.
    "S": TransformerConfig(width=768, depth=12, heads=12, text_width=768),
    # The built-in sprites: 17 x 64 x 64 pixels at stride 4 x 16 x 16.
    "sprites": TransformerConfig(
        width=192,
        depth=5,
        heads=3,
        ffn_multiple=8 / 3,
        bits=32,
        scales=square_scales(1, 2, 4),
        text_len=8,
        text_width=192,
        pooled_text=True,
        align="grid",
    ),
    # Tests and smoke runs.
    "tiny": TransformerConfig(
        width=64,
        depth=2,
        heads=2,
        ffn_multiple=2.0,
        bits=12,
        scales=square_scales(1, 2),
        frames=3,
        text_len=4,
        text_width=32,
        pooled_text=True,
    ),
}


def preset(name: str, **changes) -> TransformerConfig:
    """A preset by name, with fields replaced.

    Raises:
        ValueError: if there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: expected one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name].replace(**changes)
