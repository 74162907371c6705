"""Work lists of attention on a GPU, as its caller finds them: by content, and again while a CUDA graph is captured."""

from __future__ import annotations

import pytest
from named_gpu import NamedGpu

from videoar_kernels import RangeMask
from videoar_kernels.triton.attention_plan import KEPT


@pytest.fixture
def gpu(monkeypatch):
    return NamedGpu(monkeypatch)


def mask_of(first, last=90):
    return RangeMask.from_ranges(20, 100, [(0, 20)], [[(first, last)]])


def test_a_list_is_made_once_and_found_by_content(gpu):
    plan = gpu.plan(mask_of(3))
    assert gpu.plan(mask_of(3)) is plan
    assert gpu.made == 1
    others = [gpu.plan(mask_of(4)), gpu.plan(mask_of(3), tile=32), gpu.plan(mask_of(3), by_key=True)]
    assert gpu.made == 4 and plan not in others


def test_capturing_finds_what_was_made_before_and_waits_for_nothing(gpu):
    plan = gpu.plan(mask_of(3))
    gpu.capturing = True
    assert gpu.plan(mask_of(3)) is plan
    with pytest.raises(RuntimeError, match="used before the CUDA graph is captured, got a new one"):
        gpu.plan(mask_of(4))
    assert gpu.made == 1


def test_lists_that_a_graph_holds_stay_while_others_make_room(gpu):
    held, loose = gpu.plan(mask_of(0, 1)), gpu.plan(mask_of(0, 2))
    gpu.capturing = True
    gpu.plan(mask_of(0, 1))
    gpu.capturing = False
    for tile in range(1, 5):
        for first in range(KEPT // 4):
            gpu.plan(mask_of(first), tile=tile)
    assert gpu.plan(mask_of(0, 1)) is held
    assert gpu.plan(mask_of(0, 2)) is not loose
    assert len(gpu.plans) <= KEPT + 1


def test_a_written_mask_is_another_mask(gpu):
    mask = mask_of(3)
    plan = gpu.plan(mask)
    mask.key_ranges[0, 0] = 5
    assert gpu.plan(mask) is not plan
