"""What a Python that a test starts finds: the folders of this repository, and whatever the caller's finds."""

from __future__ import annotations

import os
from pathlib import Path


def python_path(*folders: Path) -> str:
    """PYTHONPATH of these folders before the caller's own, from which PyTorch itself may come."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])
