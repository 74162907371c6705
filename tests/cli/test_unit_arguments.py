"""Commands of paper U refuse what makes no sense in one line."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from videoar.cli import app
from videoar.evaluation import unit_table
from videoar.training import critics_ablation


@pytest.mark.parametrize(
    ("command", "option", "value", "least"),
    [
        ("evaluate units", "--prompts", 1, 2),
        ("evaluate units", "--reference", 1, 2),
        ("evaluate units", "--timed", 0, 1),
        ("evaluate units", "--batch", 0, 1),
        ("evaluate units", "--threads", 0, 1),
        ("evaluate units", "--steps", 0, 1),
        ("evaluate units", "--window", -1, 0),
        ("evaluate stream", "--streams", 0, 1),
        ("evaluate stream", "--sink", -1, 0),
        ("evaluate switch", "--streams", 0, 1),
        ("evaluate switch", "--contexts", 0, 1),
        ("evaluate switch", "--contexts", -1, 1),
        ("evaluate switch", "--history", -1, 0),
        ("profile", "--steps", 0, 1),
        ("profile", "--batch", 0, 1),
        ("profile", "--rounds", 0, 1),
        ("stream", "--steps", 0, 1),
        ("generate", "--steps", 0, 1),
    ],
)
def test_numbers_out_of_range_are_named(command, option, value, least):
    done = CliRunner().invoke(app, [*command.split(), option, str(value)])
    said = re.sub(r"[\s│]+", " ", done.output)
    assert done.exit_code == 2 and option in said and re.search(rf"(>=|or equal to ){least}\b", said)


@pytest.mark.parametrize("fps", ["0", "-3", "nan", "inf"])
def test_a_frame_rate_that_makes_no_sense_is_named(tmp_path, fps):
    done = CliRunner().invoke(app, ["generate", "--fps", fps, "-o", str(tmp_path / "a.mp4")])
    assert done.exit_code == 1 and f"expected --fps above 0, got {float(fps)}" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected a YAML file first, got none"),
        (["--"], "expected a YAML file first, got none"),
        (["a.yaml", "--"], "expected seeds after --, got none"),
        (["a.yaml", "--", "1", "x"], "expected seeds after --, got 1 x"),
        (["nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_the_ablation_says_what_it_needs(arguments, said):
    with pytest.raises(SystemExit, match=said):
        critics_ablation.main(arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}', "got one without adherence, device, frechet, name"),
        ("[1]", "got list as number 1"),
        ("{", "line 1"),
        (None, "No such file"),
    ],
)
def test_the_table_says_which_report_is_none(tmp_path, monkeypatch, capsys, text, said):
    if text is not None:
        (tmp_path / "r.json").write_text(text)
    monkeypatch.setattr("sys.argv", ["unit_table", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit, match="2"):
        unit_table.main()
    assert said in capsys.readouterr().err
