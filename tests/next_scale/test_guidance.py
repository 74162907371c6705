"""Temporal-spatial guidance schedules are the paper's."""

from __future__ import annotations

import itertools

from videoar.next_scale.guidance import GuidanceSchedule


def test_ucf_rises_over_frames_at_the_first_scale_and_to_ten_in_every_frame():
    schedule = GuidanceSchedule.ucf()
    assert [schedule.at(frame, 0, 5, 6) for frame in range(5)] == [1, 2, 3, 4, 5]
    assert {schedule.at(frame, 5, 5, 6) for frame in range(5)} == {10}
    steps = [schedule.at(0, scale, 5, 6) for scale in range(6)]
    assert all(abs((late - early) - 9 / 5) < 1e-12 for early, late in itertools.pairwise(steps))


def test_text_falls_from_five_to_three_along_time_and_scale():
    schedule = GuidanceSchedule.text()
    assert schedule.at(0, 0, 5, 6) == 5
    assert schedule.at(4, 5, 5, 6) == 3
    assert schedule.at(4, 0, 5, 6) == schedule.at(0, 5, 5, 6) == 4


def test_later_frames_keep_the_last_frames_guidance_and_one_frame_works():
    schedule = GuidanceSchedule.ucf()
    assert schedule.at(9, 0, 5, 6) == 5
    assert schedule.at(0, 0, 1, 1) == 1


def test_one_everywhere_needs_no_unconditional_pass():
    assert GuidanceSchedule.constant(1.0).is_one
    assert not GuidanceSchedule.text().is_one
