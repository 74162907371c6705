"""Paper S: next-frame and next-scale prediction of bits."""

from videoar.next_scale.config import PRESETS, TransformerConfig, preset
from videoar.next_scale.guidance import GuidanceSchedule
from videoar.next_scale.pipeline import VideoPipeline
from videoar.next_scale.sampling import DecodedFrame, FrameDecoder, decode_frames
from videoar.next_scale.transformer import NextScaleTransformer
from videoar.step_graphs import CudaGraphs
from videoar.text import ClassEncoder, PretrainedTextEncoder, WordEncoder

__all__ = [
    "PRESETS",
    "ClassEncoder",
    "CudaGraphs",
    "DecodedFrame",
    "FrameDecoder",
    "GuidanceSchedule",
    "NextScaleTransformer",
    "PretrainedTextEncoder",
    "TransformerConfig",
    "VideoPipeline",
    "WordEncoder",
    "decode_frames",
    "preset",
]
