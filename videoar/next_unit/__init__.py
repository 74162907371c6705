"""Paper U: a flow-matching transformer that predicts a video unit after unit."""

from videoar.next_unit.latents import from_sequence, patch_grid, to_sequence
from videoar.next_unit.layout import Unit, UnitLayout
from videoar.next_unit.units import UnitScheme, cube, frame, key_detail, multiscale, parse_units

__all__ = [
    "Unit",
    "UnitLayout",
    "UnitScheme",
    "cube",
    "frame",
    "from_sequence",
    "key_detail",
    "multiscale",
    "parse_units",
    "patch_grid",
    "to_sequence",
]
