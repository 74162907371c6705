"""What a clip is conditioned on: captions through a small trained encoder or any local one, or a class.

A conditioner maps prompts to features (B, length, width). `None` and "" stand for no condition.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from videoar.model_folder import broken_parts, load_model_folder, save_model_folder
from videoar_kernels import adaln_norm, swiglu

Prompt = str | int | None

_PAD, _UNKNOWN = 0, 1


def is_one_prompt(said: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is a prompt and not a list of them."""
    return said is None or isinstance(said, str | int)


def check_prompts(name: str, prompts: Sequence[Prompt]) -> None:
    """Raises TypeError for a prompt in place of a list of them, ValueError for an empty list."""
    if is_one_prompt(prompts):
        raise TypeError(f"{name}: expected prompts as a list, got {prompts!r}")
    if not len(prompts):
        raise ValueError(f"{name}: expected at least one prompt, got none")


class WordTokenizer:
    """Words to ids: lower case, punctuation dropped, hyphenated words kept whole ("up-left").

    Args:
        words: the vocabulary; id 0 is padding and id 1 any other word.
        length: ids a caption, padded or cut.
    """

    def __init__(self, words: Sequence[str], length: int) -> None:
        self.words, self.length = tuple(words), length
        self._ids = {word: index for index, word in enumerate(self.words, start=2)}

    @classmethod
    def from_captions(cls, captions: Sequence[str], length: int) -> WordTokenizer:
        """The tokenizer whose vocabulary is every word of `captions`, sorted."""
        return cls(sorted({word for caption in captions for word in _split(caption)}), length)

    @property
    def size(self) -> int:
        """Number of ids, padding and the unknown word included."""
        return len(self.words) + 2

    def unknown(self, caption: str) -> list[str]:
        """The words of a caption that the vocabulary lacks."""
        return [word for word in _split(caption) if word not in self._ids]

    def __call__(self, captions: Sequence[str | None]) -> Tensor:
        """Ids, int64 (B, length)."""
        ids = torch.full((len(captions), self.length), _PAD)
        for row, caption in enumerate(captions):
            found = [self._ids.get(word, _UNKNOWN) for word in _split(caption or "")][: self.length]
            ids[row, : len(found)] = torch.tensor(found, dtype=torch.int64)
        return ids


def _split(caption: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:-[^\W_]+)*", caption.lower())


@dataclass(frozen=True)
class WordEncoderConfig:
    """Vocabulary, width and caption length of a `WordEncoder`."""

    words: tuple[str, ...]
    width: int = 192
    length: int = 8
    kind: str = "words"

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))


class WordEncoder(nn.Module):
    """Trained embedding of words and their places, with one gated layer a word; the transformer mixes them.

    Args:
        config: its vocabulary and sizes.
    """

    def __init__(self, config: WordEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = WordTokenizer(config.words, config.length)
        self.embedding = nn.Embedding(self.tokenizer.size, config.width)
        self.place = nn.Parameter(torch.randn(config.length, config.width) * 0.5)
        self.gate = nn.Linear(config.width, config.width, bias=False)
        self.up = nn.Linear(config.width, config.width, bias=False)
        self.down = nn.Linear(config.width, config.width, bias=False)
        self.norm = nn.Parameter(torch.ones(config.width))
        for layer in (self.gate, self.up, self.down):
            nn.init.normal_(layer.weight, std=config.width**-0.5)

    @property
    def length(self) -> int:
        return self.config.length

    @property
    def width(self) -> int:
        return self.config.width

    def unknown(self, prompt: str) -> list[str]:
        """The words of a prompt that training never saw: the model reads them all as one."""
        return self.tokenizer.unknown(prompt)

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Features (B, length, width) of captions; None and "" are all padding."""
        ids = self.tokenizer([str(p) if p is not None else None for p in prompts])
        x = self.embedding(ids.to(self.embedding.weight.device)) + self.place
        x = x + self.down(swiglu(self.gate(x), self.up(x)))
        return adaln_norm(x, weight=self.norm, kind="rms")

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        save_model_folder(folder, asdict(self.config), self.state_dict(), dtype=dtype)


@dataclass(frozen=True)
class ClassEncoderConfig:
    """Number of classes and feature width of a `ClassEncoder`."""

    classes: int
    width: int
    kind: str = "class"


class ClassEncoder(nn.Module):
    """One learned embedding a class, and one for no class (UCF-101: 101 classes)."""

    length = 1

    def __init__(self, config: ClassEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.classes + 1, config.width)

    @property
    def width(self) -> int:
        return self.config.width

    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Features (B, 1, width) of class numbers."""
        none = self.config.classes
        ids = [none if prompt is None or prompt == "" else int(prompt) for prompt in prompts]
        for index, prompt in zip(ids, prompts, strict=True):
            if prompt is not None and prompt != "" and not 0 <= index < none:
                raise ValueError(f"ClassEncoder: expected a class in [0, {none}), got {index}")
        return self.embedding(torch.tensor(ids, device=self.embedding.weight.device))[:, None]

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        save_model_folder(folder, asdict(self.config), self.state_dict(), dtype=dtype)


@dataclass(frozen=True)
class PretrainedTextConfig:
    """Where a frozen `transformers` encoder lies and how many tokens it gives."""

    path: str
    length: int = 512
    kind: str = "transformers"


class PretrainedTextEncoder(nn.Module):
    """A frozen text encoder of the `transformers` library from a local folder; padding is zero, as Wan pads.

    Raises:
        ImportError: if `transformers` is not installed.
        FileNotFoundError: if the folder does not exist.
    """

    def __init__(self, config: PretrainedTextConfig) -> None:
        super().__init__()
        if not Path(config.path).is_dir():
            raise FileNotFoundError(f"PretrainedTextEncoder: no folder {config.path}")
        try:
            from transformers import AutoConfig, AutoModel, AutoTokenizer, T5EncoderModel, UMT5EncoderModel
        except ImportError as error:
            raise ImportError("PretrainedTextEncoder needs `pip install transformers`") from error
        self.config = config
        # diffusers keeps the two parts of a pipeline apart.
        parts = [Path(config.path) / part for part in ("text_encoder", "tokenizer")]
        weights, words = (part if part.is_dir() else config.path for part in parts)
        loaded = AutoConfig.from_pretrained(weights, local_files_only=True)
        loader = {"t5": T5EncoderModel, "umt5": UMT5EncoderModel}.get(loaded.model_type, AutoModel)
        self.tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True)
        self.encoder = loader.from_pretrained(weights, local_files_only=True).eval().requires_grad_(False)

    @property
    def length(self) -> int:
        return self.config.length

    @property
    def width(self) -> int:
        return self.encoder.config.hidden_size

    @torch.no_grad()
    def forward(self, prompts: Sequence[Prompt]) -> Tensor:
        """Features (B, length, width); a missing prompt is encoded as the empty caption."""
        batch = self.tokenizer(
            [str(p) if p is not None else "" for p in prompts],
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.encoder.device)
        features = self.encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return features * batch.attention_mask[..., None]

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the reference to the encoder's folder, not its weights."""
        save_model_folder(folder, asdict(self.config), {}, dtype=dtype)


Conditioner = WordEncoder | ClassEncoder | PretrainedTextEncoder


_KINDS = {
    "words": (WordEncoderConfig, WordEncoder),
    "class": (ClassEncoderConfig, ClassEncoder),
    "transformers": (PretrainedTextConfig, PretrainedTextEncoder),
}


def load_conditioner(folder: str | Path) -> Conditioner:
    """The conditioner that a model folder's `text` part holds.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if it is of no known kind, or broken.
    """
    config, state = load_model_folder(folder)
    kind = config.get("kind")
    if kind not in _KINDS:
        raise ValueError(f"load_conditioner: expected kind in {sorted(_KINDS)}, got {kind!r}")
    schema, model = _KINDS[kind]
    with broken_parts(folder):
        conditioner = model(schema(**config))
        if state:
            conditioner.load_state_dict(state)
    return conditioner.eval()
