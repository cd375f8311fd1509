"""What a fitted pair of sentences is decoded from on NumPyro: the prior, the mean of q(F | x), and the decoder word by word."""

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
from ..protocol import Batch, Settings
from . import objective
from .analytic import peel
from .particles import Particles, _key, to_numpy
from .ppl import PPL
from .programs import Parameters


class Decoding(Particles):
    """The part of `engines.protocol.Program` that makes sentences."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        super().__init__(pair, nets, settings)
        self._decode = jax.jit(lambda parameters, cache, ids: self.modules(parameters)["decoder"].step(cache, ids))
        self._measures = jax.jit(self._traced_measures)

    def prior_draws(self, state: Any, *, seed: int, rows: int, lengths: np.ndarray | None = None) -> np.ndarray:
        modules = self.modules(state.parameters)
        prior = PPL(modules, register=False, training=False).module("prior", modules["prior"])
        if lengths is None:
            return to_numpy(prior().sample(_key(seed), (rows,)))
        return to_numpy(prior(jnp.asarray(lengths), int(max(lengths))).sample(_key(seed)))

    def mean_measures(self, state: Any, batch: Batch) -> dict[str, np.ndarray]:
        found = self._measures(state.parameters, self.arrays(batch))
        return {name: to_numpy(measure) for name, measure in found.items()}

    def attention(self, state: Any, batch: Batch, measure: np.ndarray) -> np.ndarray:
        decoder = self.modules(state.parameters)["decoder"]
        return to_numpy(decoder.attention(jnp.asarray(measure, self.dtype), self.arrays(batch)["inputs"]))

    def decode_start(self, state: Any, latent: np.ndarray | None, rows: int, steps: int) -> Any:
        z = None if latent is None else jnp.asarray(latent, self.dtype)
        return self.modules(state.parameters)["decoder"].start(z, rows, steps)

    def decode_step(self, state: Any, cache: Any, tokens: np.ndarray) -> tuple[Any, np.ndarray]:
        cache, logits = self._decode(state.parameters, cache, jnp.asarray(tokens))
        return cache, np.asarray(logits, np.float32)

    def decode_reorder(self, cache: Any, index: np.ndarray) -> Any:
        return jax.tree.map(lambda part: part[index], cache)

    def _traced_measures(self, parameters: Parameters, arrays: Any) -> dict[str, Array]:
        _, guide = self.programs(parameters, training=False)
        means = handlers.substitute(handlers.seed(guide, jax.random.key(0)), substitute_fn=_mean)
        trace = handlers.trace(means).get_trace(arrays)
        return {name: site["value"] for name, site in objective.sites(trace).items()}


def _mean(site: Any) -> Array | None:
    """Of a measure, in place of a draw."""
    found: Any = peel(site["fn"])[0] if site["type"] == "sample" else None
    return getattr(found, "mean_measure", None)
