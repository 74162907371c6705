"""The positions of a relative cache, in memory that stays where it is, so that a CUDA graph can read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from videoar_kernels.kv_cursors import runs


class Places:
    """Positions (t, h, w) of every slot and of the block that comes next, the time of what is gone taken off.

    Args:
        capacity: slots.
        device: where they lie.
    """

    def __init__(self, capacity: int, device: torch.device | str | None) -> None:
        self.slots, self._block = torch.zeros(2, capacity, 3, dtype=torch.int64, device=device)  # (capacity, 3)

    def put(self, positions: Tensor, gap: int, slots: list[int]) -> Tensor:
        """Stores the positions (L, 3) of a block that goes to `slots`, `gap` earlier; returns what its queries have."""
        block = self._block[: len(positions)]
        block.copy_(positions, non_blocking=True)
        block[:, 0] -= gap
        for part, run in runs(slots):
            self.slots[run] = block[part]
        return block

    def shift(self, shifts: Sequence[tuple[list[int], int]]) -> None:
        """Moves the times of slots down by a gap each."""
        for slots, gap in shifts:
            for _, run in runs(slots):
                self.slots[run, 0] -= gap
