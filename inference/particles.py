"""Particles of a fitted pair of sequences: room for them, one filter over given steps, and their lines of descent.

Letters: S particles, T steps, B rows, Z dimensions of a latent, D of the data, H of the carried state.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engines.filtering import Filtered, Filtering
from ..engines.memory import available
from ..engines.protocol import Batch
from ..models.errors import BadInput
from .datasets import SequenceData

Array = np.ndarray

PART = 2**29
"""Bytes of particles, as `refuse_too_many` counts them, that are judged at once."""


def filtered(
    run: Any, x: Array, observed: Array, *, particles: int, seed: int, filtering: Filtering | None = None
) -> Filtered:
    """A filter of S particles over x (B, T, D), which is read where observed (B, T) is true and drawn elsewhere.

    filtering: systematic resampling at an effective size of half the particles, unless said.

    Raises:
        BadInput: no particle, or more than the memory holds.
    """
    refuse_too_many(run, steps=x.shape[1], particles=particles, rows=len(x))
    rows, steps, _ = x.shape
    batch = {
        "x": np.where(observed[..., None], x, 0.0).astype(np.float64 if _itemsize(run) == 8 else np.float32),
        "mask": np.ones((rows, steps), bool),
        "lengths": np.full(rows, steps, np.int32),
        "weight": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }
    return run.program.filter(
        run.state,
        batch,
        seed=seed,
        particles=particles,
        filtering=filtering or Filtering("systematic"),
        observed=None if observed.all() else observed,
    )


def descent(ancestors: Array) -> Array:
    """(T, S, B): which particle of each step stands behind each of the last, of ancestors as in `Filtered`."""
    found = np.empty_like(ancestors)
    index = np.broadcast_to(np.arange(ancestors.shape[1])[:, None], ancestors.shape[1:])
    for step in reversed(range(len(ancestors))):
        index = found[step] = np.take_along_axis(ancestors[step], index, 0)
    return found


def followed(values: Array, lines: Array) -> Array:
    """(T, S, B, …) drawn values along the lines of `descent`: particle s is one path."""
    return np.take_along_axis(values, lines[..., None], 1)


def shares(log_weight: Array) -> Array:
    """(S, B) normalised weights."""
    weights = np.exp(log_weight - log_weight.max(0))
    return weights / weights.sum(0)


def refuse_too_many(run: Any, *, steps: int, particles: int, rows: int) -> None:
    """
    Raises:
        BadInput: there is no particle, or they take more memory than the machine has left. They take about (8 + the
            bytes of a number) · T · S · B · (Z + D + H): noise and results are float64.
    """
    if particles < 1:
        raise BadInput(f"a filter of {particles} particles: at least 1 would be right")
    each, room = (8 + _itemsize(run)) * steps * rows * _numbers(run), available()
    if room is not None and particles * each > room:
        right = f"at most {most:,} particles" if (most := room // each) else "fewer or shorter sequences"
        raise BadInput(
            f"{particles:,} particles of {rows:,} sequences of {steps:,} steps take about {_bytes(particles * each)}, and "
            f"{_bytes(room)} are free: {right} would be right"
        )


def refuse_large(run: Any) -> None:
    """
    Raises:
        BadInput: the data are sequences, and the particles of a training step take more memory than the machine has left.
    """
    if not isinstance(run.dataset, SequenceData):
        return
    fit, lengths = run.recipe.fit, run.dataset.splits["train"].lengths
    steps = min(int(lengths.max()), fit.truncate or int(lengths.max()))
    particles = getattr(run.recipe.divergence, "particles", 1)
    refuse_too_many(run, rows=min(fit.batch_size, len(lengths)), steps=steps, particles=particles)


def in_parts(run: Any, batch: Batch, particles: int) -> Iterator[Batch]:
    """The batch by so many rows that the particles of a part take no more than `PART`, as far as a row allows."""
    rows, steps = batch["mask"].shape
    each = particles * (8 + _itemsize(run)) * steps * _numbers(run)
    size = max(1, min(rows, PART // each))
    size = 2 ** int(math.log2(size)) if size < rows else rows  # few shapes: each is compiled
    for first in range(0, rows, size):
        yield {name: array[first : first + size] for name, array in batch.items()}


def latent_size(run: Any) -> int:
    """Z, where the `[model]` table says it, else D."""
    return getattr(getattr(run.recipe.model, "prior", None), "dim", run.dataset.width)


def _numbers(run: Any) -> int:
    """Z + D + H, H being Z where the `[model]` table has no cell."""
    latent = latent_size(run)
    return latent + run.dataset.width + getattr(getattr(run.recipe.model, "cell", None), "hidden", latent)


def _itemsize(run: Any) -> int:
    return 8 if run.recipe.fit.precision == "float64" else 4


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
