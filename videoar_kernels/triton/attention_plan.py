"""Work lists of attention on the device: made once for a mask by the host's planner, then found again.

A list is made and copied when a mask is first seen, without waiting for the device. A CUDA graph can only be captured
with masks that were seen before; the lists that it reads stay as long as what `kept_by` was given, or for good where
nothing was.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from videoar_kernels import _C

KEPT = 256  # work lists that no graph holds


@dataclass(eq=False)
class BlockPlan:
    """Work lists of one mask for one size of tiles; see csrc/block_plan.h. Patterns are in words of 32 bits."""

    arrays: tuple[Tensor, ...]  # tiles, tile_ptr, full, partial, patterns
    most_tiles: int  # of any sample
    most_blocks: int  # of any tile
    samples: int
    stream: int  # that copies the arrays
    copied: torch.cuda.Event | None
    held: bool = field(default=False)  # by a graph whose owner is not known


Arrays = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_plans: OrderedDict[tuple, BlockPlan] = OrderedDict()
_contents: dict[tuple[int, ...], tuple] = {}
_lock = threading.Lock()  # autograd runs backward in a thread of its own
_keepers = threading.local()


@contextmanager
def kept_by(plans: set[BlockPlan]) -> Iterator[None]:
    """Adds the work lists of graphs that this thread captures to `plans`, which is to live as long as the graphs."""
    before = getattr(_keepers, "plans", None)
    _keepers.plans = plans
    try:
        yield
    finally:
        _keepers.plans = before


def _content(arrays: Arrays) -> tuple[bytes, ...] | None:
    """The arrays' bytes; looked up by identity while the tensors live, for hashing a long mask takes time."""
    if arrays[0] is None:
        return None
    key = tuple(id(a) for a in arrays)
    versions = tuple(0 if a.is_inference() else a._version for a in arrays)
    known = _contents.get(key)
    if known is not None and known[0] == versions and all(r() is a for r, a in zip(known[1], arrays, strict=True)):
        return known[2]
    content = tuple(a.numpy().tobytes() for a in arrays)
    references = tuple(weakref.ref(a, lambda _: _contents.pop(key, None)) for a in arrays)
    _contents[key] = (versions, references, content)
    return content


def block_plan(
    arrays: Arrays, q_len: int, k_len: int, tile: int, block: int, device: torch.device, *, by_key: bool = False
) -> BlockPlan:
    """Returns the work lists of a mask on `device`, ready for kernels on the current stream.

    Args:
        arrays: a RangeMask's batch_ptr, q_ranges, key_ptr, key_ranges on the CPU, or four None for every key.
        q_len: number of queries.
        k_len: number of keys.
        tile: queries of a tile; with by_key keys.
        block: keys of a block; with by_key queries.
        device: where the kernels run.
        by_key: tiles are of keys, blocks of queries.

    Raises:
        ValueError: the arrays are no valid mask.
        RuntimeError: a CUDA graph is being captured and the mask has not been seen before.
    """
    capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    with _lock:
        key = (_content(arrays), q_len, k_len, tile, block, by_key, device)
        plan = _plans.get(key)
        if plan is None:
            if capturing:
                raise RuntimeError(
                    "range_attention: expected a mask that was used before the CUDA graph is captured, got a new one"
                )
            plan = _plans[key] = _make(arrays, q_len, k_len, tile, block, device, by_key)
            loose = [k for k, p in _plans.items() if not p.held]
            for old in loose[: max(len(loose) - KEPT, 0)]:
                del _plans[old]
        elif not plan.held:
            _plans.move_to_end(key)
        if capturing:
            keeper = getattr(_keepers, "plans", None)
            plan.held |= keeper is None
            if keeper is not None:
                keeper.add(plan)
    if plan.copied is not None and not capturing:  # capturing has waited for all copies
        _await_copy(plan)
    return plan


def _make(arrays: Arrays, q_len: int, k_len: int, tile: int, block: int, device: torch.device, by_key: bool):
    numpy = [None if a is None else a.contiguous().numpy() for a in arrays]
    lists = _C.plan_blocks(*numpy, q_len, k_len, tile, block, by_key)
    tiles, tile_ptr = lists[:2]
    host = [torch.from_numpy(a) for a in lists]
    host[2] = torch.nn.functional.pad(host[2], (0, 1))  # kernels read one entry ahead
    host[-1] = host[-1].flatten().view(torch.int32)  # (patterns, pairs, tile, 2)
    stream, copied = 0, None
    if device.type == "cuda":
        host = [a.pin_memory().to(device, non_blocking=True) for a in host]
        copied = torch.cuda.Event()
        copied.record()
        stream = torch.cuda.current_stream().cuda_stream
    blocks = tiles[:, 3] - tiles[:, 2] + tiles[:, 5] - tiles[:, 4]
    return BlockPlan(
        tuple(host),
        most_tiles=int((tile_ptr[1:] - tile_ptr[:-1]).max()),
        most_blocks=int(blocks.max(initial=0)),
        samples=len(tile_ptr) - 1,
        stream=stream,
        copied=copied,
    )


def _await_copy(plan: BlockPlan) -> None:
    current = torch.cuda.current_stream()
    if current.cuda_stream == plan.stream:
        return
    for array in plan.arrays:
        array.record_stream(current)  # the allocator must not reuse it while this stream reads
    if plan.copied.query():
        return
    current.wait_event(plan.copied)
