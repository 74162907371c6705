"""A GPU in name only: work lists of attention are planned for it and stay on the CPU."""

from __future__ import annotations

import torch

from videoar_kernels import range_attention
from videoar_kernels.triton import attention_plan


class NamedGpu:
    """Counts the lists that are made; `capturing` tells whether a CUDA graph would be captured now."""

    def __init__(self, monkeypatch) -> None:
        self.capturing, self.made = False, 0
        self.plans = type(attention_plan._plans)()
        self._make = attention_plan._make
        monkeypatch.setattr(attention_plan, "_plans", self.plans)
        monkeypatch.setattr(attention_plan, "_make", self.make)
        monkeypatch.setattr(attention_plan, "_await_copy", self.await_copy)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)

    def make(self, arrays, q_len, k_len, tile, block, device, by_key):
        self.made += 1
        plan = self._make(arrays, q_len, k_len, tile, block, torch.device("cpu"), by_key)
        plan.copied = object()  # an event
        return plan

    def await_copy(self, plan) -> None:
        assert not self.capturing, "an event and streams are used while a graph is captured"

    def plan(self, mask, tile=64, block=32, by_key=False):
        arrays = (mask.batch_ptr, mask.q_ranges, mask.key_ptr, mask.key_ranges)
        device = torch.device("cuda", 0)
        return attention_plan.block_plan(arrays, mask.q_len, mask.k_len, tile, block, device, by_key=by_key)

    def attention(self, q, k, v, mask=None, **options):
        """`range_attention` that plans its mask as a GPU would."""
        if mask is not None:
            self.plan(mask)
        return range_attention(q, k, v, mask, **options)

    def run_and_capture(self, key, step) -> None:
        """Runs a step, then once more as if a graph was captured."""
        step()
        self.capturing = True
        step()
        self.capturing = False
