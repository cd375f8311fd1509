"""Draws of a latent with the rows of the batch where every reader looks for them."""

from __future__ import annotations

import numpy as np


def by_row(draws: np.ndarray, *, event: int, plate: int | None, rows: int) -> np.ndarray:
    """Draws (S, …) of one site as (S, B, …).

    event: how many trailing dimensions are no batch dimensions of the site.
    plate: the data plate's dimension among the batch dimensions, from the right; None for a global latent, whose one
        draw is repeated for each of the `rows`.
    """
    inner = draws.ndim - event
    if plate is not None:
        return np.moveaxis(draws, inner + plate, 1)
    others = [size for size in draws.shape[1:inner] if size != 1]
    shape = (*others, *draws.shape[inner:])
    return np.broadcast_to(draws.reshape(len(draws), 1, *shape), (len(draws), rows, *shape))
