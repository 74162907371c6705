"""Positions of paper S's scales and of paper U's units, written out token by token."""

from __future__ import annotations

import pytest
import torch

import videoar_kernels as vk


def test_multiscale_positions_follow_eq_7():
    text_len, frames, scales = 4, 3, [(1, 1), (2, 3), (5, 7)]
    for align in ("index", "grid"):
        expected = [(i, i, i) for i in range(text_len)]
        for t in range(frames):
            for height, width in scales:
                for h in range(height):
                    for w in range(width):
                        y, x = (h, w) if align == "index" else (round(h * 5 / height), round(w * 7 / width))
                        expected.append((t + text_len, y + text_len, x + text_len))
        positions = vk.multiscale_positions(text_len, frames, scales, align)
        assert positions.dtype == torch.int64
        assert positions.tolist() == [list(p) for p in expected]
    assert vk.multiscale_positions(0, 0, scales).shape == (0, 3)
    assert vk.multiscale_positions(3, 0, scales).tolist() == [[0] * 3, [1] * 3, [2] * 3]


def test_scales_share_coordinates_across_frames():
    one, two = vk.multiscale_positions(2, 2, [(1, 1), (4, 4)])[2:].chunk(2)
    assert torch.equal(two - one, torch.tensor([1, 0, 0]).expand(17, 3))


def test_unit_positions_keep_a_tokens_place_in_any_order():
    grid = (2, 3, 4)
    expected = [[t, h, w] for t in range(2) for h in range(3) for w in range(4)]
    assert vk.unit_positions(grid).tolist() == expected
    order = torch.randperm(24)
    shuffled = vk.unit_positions(grid, order=order, text_len=2, start=(5, 0, 0))
    assert shuffled[:2].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert shuffled[2:].tolist() == [[expected[i][0] + 7, expected[i][1] + 2, expected[i][2] + 2] for i in order]


def test_errors_name_what_was_expected():
    cases = [
        ("align", lambda: vk.multiscale_positions(1, 1, [(1, 1)], "middle")),
        ("scales as pairs", lambda: vk.multiscale_positions(1, 1, [])),
        ("sizes >= 0", lambda: vk.unit_positions((1, -1, 2))),
    ]
    for message, call in cases:
        with pytest.raises(ValueError, match=message):
            call()
