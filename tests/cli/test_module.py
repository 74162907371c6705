"""`python -m videoar` is the command `videoar`."""

from __future__ import annotations

import runpy

import pytest


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["__main__.py", *arguments])
        runpy.run_module("videoar", run_name="__main__")
    return ended.value.code


def test_the_module_is_the_command(capsys):
    assert run("info", "nowhere") == 1 and "nowhere" in capsys.readouterr().err
    assert run("generate", "--help") == 0 and "Usage: videoar generate" in capsys.readouterr().out
