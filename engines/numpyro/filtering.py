"""A particle filter over the steps of a story, on NumPyro: sequential Monte Carlo, per row."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro import handlers
from numpyro.distributions import Normal

from ...guides.sequence_guide import Proposal
from ...models.sequence import State, Step
from ..filtering import Filtered, Filtering
from .analytic import peel


def filtered(
    step: Step,
    proposal: Proposal,
    x: Array,
    mask: Array,
    *,
    particles: int,
    spec: Filtering,
    noise: dict[str, Array],
    key: Array,
    observed: Array | None = None,
) -> Filtered:
    """Runs S particles through x (T, B, D); steps outside mask (T, B) change nothing.

    noise: "ancestors" (T, S, B) uniform in [0, 1), and "latents" (T, S, B, Z), ε of normal latents, or nothing for
    draws by `key`. observed: (T, B), false where x_t is not known: the prior proposes there, x_t is drawn, and the
    proposals of other steps read 0 for it.
    """
    steps, rows = x.shape[:2]
    first = step.start((rows,))
    inputs = step.inputs(x, first) if observed is None else None
    known = (x, mask) if observed is None else (jnp.where(observed[..., None], x, 0.0), mask & observed)
    reading = proposal.reading(*known, first)
    zeros = jnp.zeros((particles, rows), x.dtype)

    def body(carry: Any, at: Any) -> tuple[Any, Any]:
        h, log_weight, evidence, score, (likelihood, prior, posterior) = carry
        key, x_t, real, u, e, epsilon, uniform, seen, more = at
        of_latents, of_data, of_networks = jax.random.split(key, 3)
        with handlers.seed(rng_seed=of_networks):
            p, q = step.prior(h), proposal.law(h) if e is None else proposal.law(h, e)
            p, q = (_over(fn, (particles, rows)) for fn in (p, q))
            z = _draw(q, epsilon, of_latents)
            x_t = jnp.broadcast_to(x_t, (particles, *x_t.shape))
            if seen is not None:
                z = jnp.where(seen[:, None], z, _draw(p, epsilon, of_latents))
            v = step.read(z)
            emission = step.emission(h, v)
            if seen is not None:
                x_t = jnp.where(seen[:, None], x_t, emission.sample(of_data).astype(x_t.dtype))
            counts = real if seen is None else real & seen
            scores = (emission.log_prob(x_t), p.log_prob(z), q.log_prob(z))
            of_data, of_prior, of_proposal = (jnp.where(counts, one, 0.0) for one in scores)
            likelihood, prior, posterior = likelihood + of_data, prior + of_prior, posterior + of_proposal
            log_weight = log_weight + of_data + of_prior - of_proposal
            after = step.next(h, v, u if seen is None else _first(step.inputs(x_t[None], h)))
        h = _where(real[:, None], after, h)
        chosen, index, share = _ancestors(log_weight, uniform, spec, more)
        gain = jnp.where(chosen, jax.nn.logsumexp(log_weight, 0) - math.log(particles), 0.0)
        # the score of these ancestors is of what comes after: Σ_t s_t (R − R_t) = R Σ s_t − Σ s_t R_t
        log_share = jnp.where(chosen, jnp.take_along_axis(share, index, 0).sum(0), 0.0)
        evidence = evidence + gain
        score = (score[0] + log_share, score[1] + log_share * lax.stop_gradient(evidence))
        h = jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, index[..., None], 0), h)
        totals = tuple(jnp.take_along_axis(total, index, 0) for total in (likelihood, prior, posterior))
        if spec.gradient == "none":
            h = jax.tree.map(lambda leaf: jnp.where(chosen[:, None], lax.stop_gradient(leaf), leaf), h)
        log_weight = jnp.where(chosen, 0.0, log_weight)
        return (h, log_weight, evidence, score, totals), (z, index, x_t, chosen)

    each = (
        jax.random.split(key, steps),
        x,
        mask,
        inputs,
        reading,
        noise.get("latents"),
        noise["ancestors"],
        observed,
        jnp.concatenate((mask[1:], jnp.zeros((1, rows), bool))),  # a row that ends is not resampled any more
    )
    first = (step.start((particles, rows)), zeros, zeros[0], (zeros[0], zeros[0]), (zeros,) * 3)
    (_, log_weight, evidence, score, (likelihood, prior, posterior)), (latents, ancestors, data, resampled) = lax.scan(
        body, first, each
    )
    evidence = evidence + jax.nn.logsumexp(log_weight, 0) - math.log(particles)
    found = score[0] * lax.stop_gradient(evidence) - score[1]
    score = found - lax.stop_gradient(found) if spec.gradient == "reinforce" else jnp.zeros_like(evidence)
    return Filtered(evidence, score, likelihood, prior, posterior, log_weight, latents, ancestors, data, resampled)


def _ancestors(log_weight: Array, uniform: Array, spec: Filtering, wanted: Array) -> tuple[Array, Array, Array]:
    """Which rows are resampled (B,), ancestors (S, B), and log of the particles' shares (S, B)."""
    particles, rows = log_weight.shape
    share = jax.nn.log_softmax(log_weight, 0)
    own = jnp.broadcast_to(jnp.arange(particles)[:, None], (particles, rows))
    if spec.resampling == "none" or particles == 1:
        return jnp.zeros(rows, bool), own, share
    log_size = -jax.nn.logsumexp(2 * lax.stop_gradient(share), 0)
    chosen = (log_size <= math.log(particles * spec.threshold) + 1e-9) & wanted
    place = (own + uniform[:1]) / particles if spec.resampling == "systematic" else uniform
    below = jnp.cumsum(jnp.exp(lax.stop_gradient(share)), 0)
    index = jax.vmap(lambda one, at: jnp.searchsorted(one, at, side="right"), (1, 1), 1)(below / below[-1], place)
    index = jnp.minimum(index, particles - 1)
    return chosen, jnp.where(chosen, index, own), share


def _first(inputs: Array | None) -> Array | None:
    return None if inputs is None else inputs[0]


def _over(fn: Any, shape: tuple[int, ...]) -> Any:
    return fn if fn.batch_shape == shape else fn.expand(shape)


def _draw(fn: Any, noise: Array | None, key: Array) -> Array:
    base, _, _ = peel(fn)
    if noise is not None and isinstance(base, Normal):
        parts: tuple[Any, Any] = base.loc, base.scale
        return parts[0] + parts[1] * noise
    return fn.sample(key)


def _where(mask: Array, one: State, other: State) -> State:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), one, other)
