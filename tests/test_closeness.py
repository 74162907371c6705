"""The judge of closeness itself."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close


def test_results_without_a_finite_element_are_judged():
    exact = torch.tensor([float("inf"), -float("inf")], dtype=torch.float64)
    assert_close(exact.float(), exact, exact.float())
    with pytest.raises(AssertionError):
        assert_close(-exact.float(), exact, exact.float())
    with pytest.raises(AssertionError, match="non-finite elements in different places"):
        assert_close(torch.zeros(2), exact, exact.float())
