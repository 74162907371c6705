"""Wan's text encoder, umT5, from a local folder: padded with zeros to the length that Wan was trained with."""

from __future__ import annotations

import pytest
import torch

from videoar.text import PretrainedTextConfig, PretrainedTextEncoder

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
WORDS = ["<pad>", "</s>", "<unk>", "a", "blue", "star", "moving", "up"]


@pytest.fixture(scope="module", params=["one folder", "diffusers"])
def folder(request, tmp_path_factory):
    """A tiny umT5 with random weights, and a tokenizer of a few words that ends a prompt as umT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("umt5")
    apart = request.param == "diffusers"
    sizes = {"vocab_size": len(WORDS), "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    encoder = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes))
    encoder.save_pretrained(place / "text_encoder" if apart else place)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.save_pretrained(place / "tokenizer" if apart else place)
    return place


def test_features_are_umt5s_and_zero_beyond_the_prompt(folder):
    encoder = PretrainedTextEncoder(PretrainedTextConfig(str(folder)))
    assert type(encoder.encoder) is transformers.UMT5EncoderModel
    found = encoder(["a blue star moving up", None])
    assert found.shape == (2, 512, 16) and found.abs().max() > 0.1
    for row, ids in zip(found, ([3, 4, 5, 6, 7, 1], [1]), strict=True):
        with torch.no_grad():
            alone = encoder.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(row[: len(ids)], alone, rtol=0, atol=1e-5)
        assert not row[len(ids) :].any()
