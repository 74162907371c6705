from __future__ import annotations

import os

import pytest
import torch

from videoar_kernels import library

# Options and colours that a user has chosen for this run are none of what tests start, and read.
for name in ("PYTEST_ADDOPTS", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS", "TERMINAL_WIDTH"):
    os.environ.pop(name, None)


def runs_on_gpu(item) -> bool:
    """Whether a test's parameters are among those that its mark `on_gpu(names, values)` asks for."""
    mark = item.get_closest_marker("on_gpu")
    if mark is None:
        return True
    names, values = mark.args
    parameters = [item.callspec.params[name] for name in names.replace(",", " ").split()]
    return (parameters[0] if len(parameters) == 1 else tuple(parameters)) in values


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """A test marked `gpu`, or with a parameter "cuda", belongs to `make gpu-check` and is skipped without a GPU."""
    left_out = [item for item in items if getattr(item, "callspec", None) and item.callspec.params.get("isa") == "cuda"]
    left_out = [item for item in left_out if not runs_on_gpu(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(p, (str, torch.device)) and str(p) == "cuda" for p in parameters):
            item.add_marker("gpu")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


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


@pytest.fixture(params=[*library.ISAS, pytest.param("cuda", marks=pytest.mark.gpu)])
def isa(request):
    """Runs the test once for each instruction set of this CPU, and on the GPU, where new tensors then lie."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
        torch.set_default_device("cuda")
        yield request.param
        torch.set_default_device(None)
        return
    if request.param not in library.available_isas():
        pytest.skip(f"this CPU or build has no {request.param}")
    before = library.set_cpu_isa(request.param)
    yield request.param
    library.set_cpu_isa(before)
