"""What the engines share about draws: the noise behind them when judging, and where every reader finds the rows."""

from __future__ import annotations

import numpy as np

from .seeds import derive


def standard_normal(seed: int, site: str, shape: tuple[int, ...]) -> np.ndarray:
    """ε of one latent site, float64: a function of seed and site, so that both engines draw the same latents.

    More particles (the first axis) leave the first ones as they are.
    """
    return np.random.Generator(np.random.Philox(derive(seed, site))).standard_normal(shape)


def uniform(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Noise in [0, 1), float64: a function of seed and name."""
    return np.random.Generator(np.random.Philox(derive(seed, f"{name} uniform"))).random(shape)


def particle_seeds(seed: int, particles: int) -> list[int]:
    """A seed for each of S runs of a guide that does not broadcast; the first is `seed` itself."""
    return [seed, *(derive(seed, "particle", number) for number in range(1, particles))]


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
