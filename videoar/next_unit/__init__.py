"""Paper U: a flow-matching transformer that predicts a video unit after unit."""

from videoar.next_unit.attention import TextKeys
from videoar.next_unit.config import BackboneConfig, preset
from videoar.next_unit.latents import from_sequence, patch_grid, to_sequence
from videoar.next_unit.layout import Unit, UnitLayout
from videoar.next_unit.pipeline import UnitDefaults, UnitPipeline
from videoar.next_unit.sampling import SamplingOptions, UnitDecoder, clips_of, sample_units
from videoar.next_unit.transformer import NextUnitTransformer
from videoar.next_unit.unit_cache import UnitCache
from videoar.next_unit.units import UnitScheme, cube, frame, key_detail, multiscale, parse_units
from videoar.next_unit.wan import LoadReport, load_wan

__all__ = [
    "BackboneConfig",
    "LoadReport",
    "NextUnitTransformer",
    "SamplingOptions",
    "TextKeys",
    "Unit",
    "UnitCache",
    "UnitDecoder",
    "UnitDefaults",
    "UnitLayout",
    "UnitPipeline",
    "UnitScheme",
    "clips_of",
    "cube",
    "frame",
    "from_sequence",
    "key_detail",
    "load_wan",
    "multiscale",
    "parse_units",
    "patch_grid",
    "preset",
    "sample_units",
    "to_sequence",
]
