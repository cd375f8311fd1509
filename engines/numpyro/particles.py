"""A particle filter over a batch of a pair made of steps, on NumPyro."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers

from ...guides.pair import Pair
from ...models.spec import Network
from ..filtering import Filtered, Filtering, common, steps_of
from ..protocol import Batch, Settings
from ..seeds import derive
from .filtering import filtered
from .ppl import PPL, seeded
from .programs import Parameters, Realised


class Particles(Realised):
    """What `engines.protocol.Program.filter` is made of; compiled once a shape."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        super().__init__(pair, nets, settings)
        self._filter = jax.jit(self._filtered, static_argnums=(5, 6))

    def filter(
        self,
        state: Any,
        batch: Batch,
        *,
        seed: int,
        particles: int,
        filtering: Filtering,
        observed: np.ndarray | None = None,
    ) -> Filtered:
        arrays = self.arrays(batch)
        noise = self._filter_noise(arrays, particles, seed)
        seen = None if observed is None else jnp.asarray(observed).T
        found = self._filter(state.parameters, arrays, _key(seed), noise, seen, particles, filtering)
        return Filtered(*(np.asarray(part) if part.dtype != self.dtype else to_numpy(part) for part in found))

    def _filtered(
        self,
        parameters: Parameters,
        arrays: Any,
        key: Array,
        noise: dict[str, Array] | None,
        observed: Array | None,
        particles: int,
        filtering: Filtering,
        training: bool = False,
    ) -> Filtered:
        """noise: the common one, when judging; None: the key's."""
        steps = steps_of(self.pair)
        modules = self.modules(parameters)
        ppl = PPL(modules, register=False, training=training, dtype=self.dtype)
        of_ancestors, of_steps, of_networks = jax.random.split(key, 3)
        x, mask = arrays["x"].swapaxes(0, 1), (arrays["mask"] & (arrays["weight"] > 0)[:, None]).T
        if noise is None:
            shape = (len(x), particles, x.shape[1])
            noise = {"ancestors": jax.random.uniform(of_ancestors, shape, x.dtype)}
        with handlers.seed(rng_seed=of_networks):
            step = steps.step(ppl, modules)
            return filtered(
                step,
                steps.proposal(ppl, modules, step),
                x,
                mask,
                particles=particles,
                spec=filtering,
                noise=noise,
                key=of_steps,
                observed=observed,
            )

    def _filter_noise(self, arrays: Any, particles: int, seed: int) -> dict[str, np.ndarray]:
        modules = {name: network.module({}) for name, network in self.networks.items()}
        step = steps_of(self.pair).step(PPL(modules, register=False, training=False, dtype=self.dtype), modules)
        rows, steps = arrays["mask"].shape
        found = common(seed, (steps, particles, rows), step.dim)
        return {name: value.astype(self.dtype) for name, value in found.items()}


def to_numpy(array: Array) -> np.ndarray:
    return np.asarray(array, np.float64)


def _key(seed: int) -> Array:
    return seeded(derive(seed, "evaluate"))
