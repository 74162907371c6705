"""Settings come from YAML and dotted overrides, and mistakes in them are named."""

from __future__ import annotations

import pytest

from videoar.training.config import load_config
from videoar.training.tokenizer import TokenizerTraining


def test_a_file_and_overrides_make_a_checked_config(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "stages: [{steps: 7, frames: 1, batch: 8}, {steps: 3, frames: 17, batch: 2}]\n"
        "model:\n  bits: 16\n  scales: [[1, 1], [4, 4]]\n"
    )
    config = load_config(path, ["optimizer.learning_rate=1e-4", "model.bits=24", "data.rate=null"], TokenizerTraining)
    assert (config.steps, config.model.bits, config.model.scales) == (10, 24, ((1, 1), (4, 4)))
    assert config.optimizer.learning_rate == 1e-4
    assert config.optimizer.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seedz=3", "unknown key seedz"),
        ("model.bit=3", r"unknown key model\.bit"),
        ("seed=many", "expected int at seed"),
        ("seed", "expected key=value"),
        ("model=3", "expected a group at model"),
        ("optimizer.betas=[0.9]", r"expected 2 values at optimizer\.betas"),
        ("seed.more=3", "seed, which is not a group"),
        ("seed=[", r"expected YAML in seed=\[, got"),
    ],
)
def test_a_mistake_is_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(None, ["seed=5", override], TokenizerTraining)


@pytest.mark.parametrize("name", ["sprites", "clips"])
def test_the_shipped_configs_are_valid(name, request):
    path = request.config.rootpath / "configs" / name / "tokenizer.yaml"
    assert load_config(path, [], TokenizerTraining).steps > 0
