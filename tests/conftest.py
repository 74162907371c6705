from __future__ import annotations

import pytest
import torch

from videoar_kernels import library


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills every torch.empty with NaN, so that an element that a kernel leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=library.ISAS)
def isa(request):
    """Runs the test once for each instruction set of this CPU."""
    if request.param not in library.available_isas():
        pytest.skip(f"this CPU or build has no {request.param}")
    before = library.set_cpu_isa(request.param)
    yield request.param
    library.set_cpu_isa(before)
