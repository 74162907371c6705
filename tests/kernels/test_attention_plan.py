"""Work lists of attention on a GPU, as its caller finds them: by content, and again while a CUDA graph is captured."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from named_gpu import NamedGpu

from videoar.step_graphs import CudaGraphs
from videoar_kernels import RangeMask
from videoar_kernels.triton.attention_plan import KEPT, kept_by


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


def test_lists_whose_keeper_is_known_are_freed_with_it(gpu):
    plans, mask = set(), mask_of(0, 1)
    plan = weakref.ref(gpu.plan(mask))
    with kept_by(plans):
        gpu.plan(mask_of(0, 2))  # before the capture: not kept
        gpu.capturing = True
        gpu.plan(mask)
        gpu.capturing = False
    assert plans == {plan()} and not plan().held
    gpu.plans.clear()  # as others make room
    gc.collect()
    assert plan() is not None
    plans.clear()
    gc.collect()
    assert plan() is None


def test_graphs_of_steps_keep_the_lists_that_they_read_and_no_longer(gpu, monkeypatch):
    @contextmanager
    def capture(graph, **options):
        gpu.capturing = True
        yield
        gpu.capturing = False

    for name in ("graph_pool_handle", "Stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    run = CudaGraphs(torch.device("cuda", 0))
    run("step", lambda: gpu.plan(mask_of(0, 1)))
    (plan,) = (weakref.ref(plan) for plan in gpu.plans.values())
    gpu.plans.clear()
    gc.collect()
    assert gpu.made == 1 and plan() is not None
    del run
    gc.collect()
    assert plan() is None


def test_a_written_mask_is_another_mask(gpu):
    mask = mask_of(3)
    plan = gpu.plan(mask)
    mask.key_ranges[0, 0] = 5
    assert gpu.plan(mask) is not plan
