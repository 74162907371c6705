"""Random Frame Mask: which earlier frames each frame may see in a training step. Source: paper S, Eq. 9."""

from __future__ import annotations

from torch import Tensor

from videoar_kernels.reference.philox import philox_uniform


def random_frame_keep(frames: int, p_mask: float, *, seed: int, offset: int = 0, batch: int | None = None) -> Tensor:
    """Draw m: row t says which frames step t may see; later frames and the window are the mask's business.

    Args:
        frames: latent frames.
        p_mask: probability that a frame is hidden from a later one.
        seed, offset: of the draw.
        batch: one draw a sample; None draws one for all.

    Returns:
        bool (frames, frames) or (batch, frames, frames).
    """
    shape = (frames, frames) if batch is None else (batch, frames, frames)
    return philox_uniform(shape, seed, offset) >= p_mask
