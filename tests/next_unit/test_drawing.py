"""Pictures of units, in the terminal and as PNG."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from videoar.cli import app
from videoar.next_unit import cube, frame, multiscale
from videoar.next_unit.drawing import colour, picture, steps, terminal


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_steps_are_the_numbers_of_the_units():
    (grid,) = steps(cube(2, 1, 2).on((2, 1, 3)))
    assert grid.tolist() == [[[0, 0, 1]], [[2, 2, 3]]]
    coarse, fine = steps(multiscale([(1, 1)]).on((1, 2, 2)))
    assert coarse.tolist() == [[[0]]] and fine.tolist() == [[[1, 1], [1, 1]]]


def test_the_terminal_shows_every_cell_with_its_step():
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal(cube(2, 1, 2), cube(2, 1, 2).on((2, 1, 3))))
    shown = console.export_text()
    assert "cube(2, 1, 2): 4 units of 1 to 2 tokens, 6 in all" in shown
    assert " 0 0 1   2 2 3" in shown


def test_a_picture_colours_cells_by_step(tmp_path):
    layout = frame().on((3, 2, 2))
    sheet = np.asarray(picture([(frame(), layout)])).reshape(-1, 3)
    for unit in range(3):
        assert (sheet == colour(unit, 3)).all(1).any()


def test_info_draws_every_unit(tmp_path):
    done = run("info", "--units", "--png", tmp_path / "units.png")
    assert done.exit_code == 0, done.output
    for name in ("frame: 4 units", "key_detail(2): 2 units", "cube(2, 2, 2): 8 units", "multiscale(1x1, 2x2, 3x4)"):
        assert name in done.output
    assert Image.open(tmp_path / "units.png").width > 500


def test_info_draws_the_units_asked_for():
    done = run("info", "--units", "--grid", "2x4x4", "--scheme", "cube(1, 2, 2)")
    assert done.exit_code == 0, done.output
    assert "cube(1, 2, 2): 4 units of 8 tokens, 32 in all" in done.output and "frame" not in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--units", "--grid", "4x4"), "--grid such as"),
        (("--units", "--scheme", "ball"), "parse_units"),
        (("--grid", "2x2x2"), "only with --units"),
    ],
)
def test_info_says_what_does_not_fit(arguments, said):
    done = run("info", *arguments)
    assert done.exit_code == 1
    assert said in done.output.replace("\n", " ")
