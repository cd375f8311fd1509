"""Steps of the nonparametric bottleneck and of what it is measured against, on JAX."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln
from numpyro.distributions.kl import kl_divergence

from benchmarks.bottleneck_step import PRIOR, posterior
from benchmarks.measuring import Step
from guidebook.engines.numpyro.measures import MEASURES

Arrays = Mapping[str, np.ndarray]


def ours(arrays: Arrays, objective: str) -> Step:
    spec = posterior(objective)
    latent, features = arrays["loc"].shape
    prior: Any = MEASURES[type(PRIOR)]({}, PRIOR)
    lengths = jnp.full(arrays["h"].shape[:1], arrays["h"].shape[1])

    def forward(h: Array, weights: Mapping[str, Array], key: Array) -> tuple[Array, Array]:
        layer: Any = MEASURES[type(spec)](dict(weights), spec, "float32", (("features", features), ("latent", latent)))
        q, p = layer(h, lengths, prior=prior), prior(lengths, h.shape[-2])
        return q.sample(key), kl_divergence(q, p).sum()

    return _stepped(forward, arrays)


def hand(arrays: Arrays) -> Step:
    """Stratified draws and the published penalties, as one writes them."""

    def forward(h: Array, weights: Mapping[str, Array], key: Array) -> tuple[Array, Array]:
        def projected(name: str) -> Array:
            return jnp.pad(h @ weights[name].T + weights[f"{name}_bias"], ((0, 0), (1, 0), (0, 0)))

        mu, logs = projected("loc"), projected("log_variance")
        log_alpha = h @ weights["alpha"] + h**2 @ weights["alpha_square"] + weights["alpha_bias"]
        counts = jnp.exp(jnp.pad(log_alpha, ((0, 0), (1, 0))))
        of_weights, of_locations = jax.random.split(key)
        drawn = jax.nn.log_softmax(jax.random.loggamma(of_weights, counts), -1)
        z = mu + jnp.exp(0.5 * logs) * jax.random.normal(of_locations, mu.shape)
        total, atoms = counts.sum(-1), float(counts.shape[-1])
        weighing = gammaln(total) - gammaln(atoms) + (total - atoms) * (digamma(total / atoms) - digamma(total))
        weighing = weighing + atoms * (gammaln(1.0) - gammaln(total / atoms))
        each = 0.5 * (mu**2 + jnp.exp(logs) - 1 - logs).sum(-1)
        placing = atoms * (counts / total[..., None] * each).sum(-1)
        return jnp.concatenate((drawn[..., None], z), -1), (weighing + placing).sum()

    return _stepped(forward, arrays)


def floor(arrays: Arrays) -> Step:
    h = jnp.asarray(arrays["h"]).reshape(-1, arrays["h"].shape[-1])
    loc, log_variance = (jnp.asarray(arrays[name]) for name in ("loc", "log_variance"))

    def products(h: Array, loc: Array, log_variance: Array) -> tuple[Array, ...]:
        one, other = h @ loc.T, h @ log_variance.T
        return one @ loc, other @ log_variance, one.T @ h, other.T @ h

    made = jax.jit(products).lower(h, loc, log_variance).compile()
    return lambda: jax.block_until_ready(made(h, loc, log_variance))


def _stepped(forward: Callable[..., tuple[Array, Array]], arrays: Arrays) -> Step:
    h, upstream = jnp.asarray(arrays["h"]), jnp.asarray(arrays["upstream"])
    weights = {name: jnp.asarray(array) for name, array in arrays.items() if name not in ("h", "upstream")}

    def both(h: Array, weights: Mapping[str, Array], upstream: Array, key: Array) -> Any:
        (_, kl), back = jax.vjp(lambda h, weights: forward(h, weights, key), h, weights)
        return kl, back((upstream, jnp.ones_like(kl)))

    keys = itertools.cycle(jax.random.split(jax.random.key(0), 4))
    made = jax.jit(both).lower(h, weights, upstream, next(keys)).compile()
    return lambda: jax.block_until_ready(made(h, weights, upstream, next(keys)))
