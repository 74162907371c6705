"""The one judge of closeness for the whole suite."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_close(
    out: Tensor, exact: Tensor, low: Tensor | None = None, *, factor: float = 2.0, slack: float = 0.0
) -> None:
    """Fails unless `out` is about as close to the float64 result as eager PyTorch in the same dtype is.

    Args:
        out: the result under test.
        exact: the reference in float64.
        low: the same mathematics by eager PyTorch in `out`'s dtype; None: only the dtype's own rounding is allowed.
        factor: how many times the error of `low` may be reached.
        slack: further error allowed, relative to the largest element; say where it comes from.
    """
    assert out.shape == exact.shape, f"shape {tuple(out.shape)}, expected {tuple(exact.shape)}"
    if out.numel() == 0:
        return
    out, exact = out.detach(), exact.detach().double()
    assert torch.equal(torch.isfinite(out), torch.isfinite(exact)), "non-finite elements in different places"
    finite = torch.isfinite(exact)
    assert torch.equal(out[~finite].double(), exact[~finite]) or exact[~finite].isnan().any()
    error = (out.double() - exact)[finite].abs().max().item() if finite.any() else 0.0
    scale = exact[finite].abs().max().item() if finite.any() else 0.0
    allowed = (4 * torch.finfo(out.dtype).eps + slack) * scale
    if low is not None and finite.any():
        allowed += factor * (low.detach().double() - exact)[finite].abs().max().item()
    assert error <= allowed, f"error {error:.3e} at scale {scale:.3e}, allowed {allowed:.3e} ({out.dtype})"
