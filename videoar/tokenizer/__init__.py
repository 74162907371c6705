"""Causal multi-scale video tokenizer (paper S, Sec. 4.1)."""

from videoar.tokenizer.config import TokenizerConfig
from videoar.tokenizer.model import DecoderState, EncoderState, VideoTokenizer

__all__ = ["DecoderState", "EncoderState", "TokenizerConfig", "VideoTokenizer"]
