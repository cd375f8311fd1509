"""Running moments: what both engines ask of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from ..models.errors import BadInput

TINY_VARIANCE = 1e-10
"""Added to a variance that is divided by."""


def refuse_single_row(shape: Sequence[int]) -> None:
    """h (…, B, H) must have rows to take moments of."""
    if len(shape) < 2 or shape[-2] < 2:
        raise BadInput(
            "a batch-normalised posterior takes its moments over the batch, and a batch here has one row: "
            "set fit.batch_size to 2 or more"
        )
