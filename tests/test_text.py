"""Conditioners: captions, classes, and no condition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from videoar.text import (
    ClassEncoder,
    ClassEncoderConfig,
    PretrainedTextConfig,
    PretrainedTextEncoder,
    WordEncoder,
    WordEncoderConfig,
    WordTokenizer,
    load_conditioner,
)

CAPTIONS = ["a red circle moving up-left slowly", "a blue star moving down quickly"]


def test_words_are_case_and_punctuation_blind_and_hyphens_join():
    tokenizer = WordTokenizer.from_captions(CAPTIONS, 6)
    assert "up-left" in tokenizer.words
    assert torch.equal(tokenizer(["A red, circle: moving UP-LEFT slowly!"]), tokenizer(CAPTIONS[:1]))


def test_unknown_words_are_told_and_share_an_id():
    tokenizer = WordTokenizer.from_captions(CAPTIONS, 6)
    assert tokenizer.unknown("a purple circle") == ["purple"]
    assert torch.equal(tokenizer(["a purple circle"]), tokenizer(["a violet circle"]))


def test_captions_are_padded_and_cut():
    tokenizer = WordTokenizer.from_captions(CAPTIONS, 3)
    assert tokenizer(["a", CAPTIONS[0]]).shape == (2, 3)
    assert tokenizer(["a"])[0].tolist()[1:] == [0, 0]


def test_no_caption_is_the_empty_caption():
    encoder = WordEncoder(WordEncoderConfig(("a", "red", "circle"), width=8, length=4))
    features = encoder([None, "", "a red circle"])
    assert features.shape == (3, 4, 8)
    assert torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])


def test_a_class_outside_the_range_is_refused():
    encoder = ClassEncoder(ClassEncoderConfig(classes=3, width=8))
    assert encoder([0, 2, None, ""]).shape == (4, 1, 8)
    with pytest.raises(ValueError, match="got 4"):
        encoder([4])


@pytest.mark.parametrize(
    "encoder",
    [
        WordEncoder(WordEncoderConfig(("a", "red", "circle"), width=8, length=4)),
        ClassEncoder(ClassEncoderConfig(classes=3, width=8)),
    ],
)
def test_a_saved_conditioner_comes_back(encoder, tmp_path: Path):
    encoder.save_pretrained(tmp_path / "text")
    again = load_conditioner(tmp_path / "text")
    prompts = ["a red circle"] if isinstance(encoder, WordEncoder) else [2]
    assert type(again) is type(encoder)
    assert torch.equal(again(prompts), encoder(prompts))


def test_a_missing_pretrained_encoder_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PretrainedTextEncoder(PretrainedTextConfig(str(tmp_path / "nowhere")))
