"""Causal multi-scale video tokenizer (paper S, Sec. 4.1), and the continuous autoencoder of the same network."""

from videoar.tokenizer.autoencoder import VideoAutoencoder
from videoar.tokenizer.config import AutoencoderConfig, TokenizerConfig
from videoar.tokenizer.model import DecoderState, EncoderState, VideoTokenizer

__all__ = ["AutoencoderConfig", "DecoderState", "EncoderState", "TokenizerConfig", "VideoAutoencoder", "VideoTokenizer"]
