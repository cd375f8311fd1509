"""Latent sequence models: a step, and the programs that it makes.

    z_t ~ p(z_t | h_t)        x_t ~ p(x_t | z_t, h_t)        h_{t+1} = f(h_t, z_t, x_t),   t = 1 … T

A story of this kind is a `Step`. The same step is unrolled by the programs of SVI, is filtered by particles, and is
run forward to generate and to forecast. Given the states h, its steps are independent, so that a program has one site
`z` and one site `x` for all of them, with the plates (time, sequences).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from .batch import Batch
from .likelihoods import Likelihood
from .ppl import PPL

Array = Any
State = Any
"""h_t: an array (…, H), or a tuple of such."""

PLATE = "sequences"
SITES = {"z": ("z_dim",), "x": ("x_dim",)}


class Step(Protocol):
    """One step, for any number of leading dimensions: rows, particles and rows, or time, particles and rows.

    A class of this kind inherits `inputs` and `read` where it says nothing else.
    """

    dim: int
    """Z, dimensions of z_t."""

    def start(self, shape: tuple[int, ...]) -> State:
        """h_1 with these leading dimensions."""
        ...

    def inputs(self, x: Array, h: State) -> Array | None:
        """What `next` reads of x_1 … x_T (T, …, D), h the state h_1 (…, H): all steps at once, before the loop.

        What follows from x alone, a recurrence over it too, belongs here; where x is drawn on the way, T = 1. None:
        nothing.
        """
        return None

    def read(self, z: Array) -> Array:
        """v_t, what `emission` and `next` read of z_t (…, Z): computed once."""
        return z

    def prior(self, h: State) -> Any:
        """p(z_t | h_t), event shape (Z,)."""
        ...

    def emission(self, h: State, v: Array) -> Any:
        """p(x_t | z_t, h_t), event shape (D,)."""
        ...

    def next(self, h: State, v: Array, inputs: Array | None) -> State:
        """h_{t+1}; inputs: step t of `inputs`, the same for all particles. So may be a part of the state."""
        ...


def at_the_mean(
    weights: Mapping[str, np.ndarray],
    mean: np.ndarray,
    likelihood: Likelihood,
    *,
    emitted: str,
    read: tuple[str, str] | None = None,
) -> dict[str, np.ndarray]:
    """Initial weights for data of this mean (D,): the bias `emitted` of the features starts at the mean, and what is
    read by the weight and the bias `read` as if it were x − mean."""
    found = {**weights, emitted: weights[emitted] + likelihood.bias(mean)}
    if read is not None:
        weight, bias = read
        found[bias] = weights[bias] - weights[weight] @ mean
    return found


StepOf = Callable[[PPL, Mapping[str, Any]], Step]


def sequence_model(step_of: StepOf) -> Callable[[PPL, Batch, Mapping[str, Any]], None]:
    """The program p(x, z) of a step; batches hold x (B, T, D) and mask (B, T)."""

    def model(ppl: PPL, batch: Batch, nets: Mapping[str, Any]) -> None:
        step, x = step_of(ppl, nets), batch.x.swapaxes(0, 1)
        with across(ppl, batch):
            path = ppl.unroll(step, x)
            z = ppl.sample("z", path.latents(step.prior))
            ppl.sample("x", step.emission(*path.along(z)), obs=x)

    return model


class across:
    """The plates of time and of sequences, where only real steps count."""

    def __init__(self, ppl: PPL, batch: Batch) -> None:
        mask = batch.mask.swapaxes(0, 1)
        self.contexts = (
            ppl.plate("time", mask.shape[0], dim=-2),
            ppl.plate(PLATE, batch.data_size, subsample=batch.index, dim=-1),
            ppl.mask(mask & batch.real),
        )

    def __enter__(self) -> None:
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*error)
