"""What a CUDA graph does, on any device: operators are recorded once and run again without the Python between them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from functools import _lru_cache_wrapper

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# Of a mask: on a GPU the host makes work lists of them, which `attention_plan` keeps for graphs.
HOST_ARRAYS = ("mask", "batch_ptr", "q_ranges", "key_ptr", "key_ranges")


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


class WatchedSteps:
    """A runner for decoders that keeps nothing of a step but weak references to the memory that it reads from outside.

    So does a CUDA graph, which knows addresses alone: what `freed` tells of would be read after it was freed.
    """

    def __init__(self) -> None:
        self.read: dict[Hashable, list[StorageWeakRef]] = {}

    def __call__(self, key: Hashable, step: Callable[[], None]) -> None:
        step()  # makes what is made at a first call; in the second, which a graph captures, it is there
        with _Watcher() as watcher:
            step()
        self.read[key] = list(watcher.outside.values())

    def freed(self) -> set[Hashable]:
        """Keys of the steps that read what is no more, once no cache of this library holds it either."""
        for found in gc.get_objects():
            if type(found) is _lru_cache_wrapper and found.__module__.startswith("videoar"):
                found.cache_clear()
        gc.collect()
        return {key for key, references in self.read.items() if any(r.expired() for r in references)}


class _Watcher(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.outside: dict[int, StorageWeakRef] = {}
        self.inside: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        read = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        for name, value in read.items():
            for tensor in tree_leaves(value):
                if isinstance(tensor, torch.Tensor) and name not in HOST_ARRAYS:
                    reference = StorageWeakRef(tensor.untyped_storage())
                    if reference.cdata not in self.inside:
                        self.outside.setdefault(reference.cdata, reference)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                if reference.cdata not in self.outside:
                    self.inside.setdefault(reference.cdata, reference)
        return result


def own_operators(run: RecordedSteps) -> set[str]:
    """The operators of this library among those that were recorded."""
    return {name.split(".")[1] for name in run.names() if name.startswith("videoar_kernels.")}
