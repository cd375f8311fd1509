"""Seeds that are functions of where a run stands, so that resuming needs no generator state."""

from __future__ import annotations

import zlib

import numpy as np


def derive(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for one purpose ("step", "evaluate", …) at one step of the run seeded with `seed`."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), step]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1
