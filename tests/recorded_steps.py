"""What a CUDA graph does, on any device: operators are recorded once and run again without the Python between them."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result


class RecordedSteps:
    """A runner for decoders: a step runs, is recorded, and from then on only its operators run again.

    As in a CUDA graph, every tensor keeps its address and every number its value. Buffers are poisoned before a step
    is run again, so that nothing can pass through the memory it allocated the last time.
    """

    def __init__(self) -> None:
        self.steps: dict[Hashable, list[tuple]] = {}
        self.replays = 0

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        if key not in self.steps:
            with _Recorder() as recorder:
                step()
            self.steps[key] = recorder.calls
            return
        self.replays += 1
        for func, args, kwargs, result in self.steps[key]:
            if not _allocates(func, result):
                func(*args, **kwargs)
                continue
            for kept, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor):
                    kept.copy_(new)

    def poison(self) -> None:
        """Overwrites what the recorded steps allocated."""
        for calls in self.steps.values():
            for func, _, _, result in calls:
                if _allocates(func, result):
                    tree_map(lambda t: t.fill_(77) if isinstance(t, torch.Tensor) else None, result)

    def names(self) -> set[str]:
        return {str(func) for calls in self.steps.values() for func, *_ in calls}


def _allocates(func, result) -> bool:
    returns = func._schema.returns
    return (
        bool(tree_leaves(result)) and all(r.alias_info is None for r in returns) and str(func) != "aten.detach.default"
    )
