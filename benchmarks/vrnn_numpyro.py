"""The VRNN of `benchmarks.vrnn_step` by hand in JAX, and as a stock NumPyro program."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.contrib.control_flow import scan
from numpyro.infer import SVI, TraceMeanField_ELBO

Weights = dict[str, Array]


def mlp(w: Weights, name: str, x: Array) -> Array:
    """One hidden layer."""
    x = jax.nn.relu(x @ w[f"{name}.weight_0"].T + w[f"{name}.bias_0"])
    return x @ w[f"{name}.weight_1"].T + w[f"{name}.bias_1"]


def prior(w: Weights, h: Array) -> tuple[Array, Array]:
    loc, log_variance = jnp.split(mlp(w, "prior", h), 2, axis=-1)
    return loc, log_variance


def posterior(w: Weights, features: Array, h: Array) -> tuple[Array, Array]:
    read = jax.nn.relu(jnp.concatenate((features, h), -1) @ w["encoder.weight_0"].T + w["encoder.bias_0"])
    loc, log_variance = jnp.split(read @ w["posterior.weight"].T, 2, axis=-1)
    return loc, log_variance


def emission(w: Weights, latent: Array, h: Array) -> Array:
    return mlp(w, "decoder", jnp.concatenate((latent, h), -1))


def cell(w: Weights, features: Array, latent: Array, h: Array, c: Array) -> tuple[Array, Array]:
    gates = features @ w["cell.weight_inputs"].T + latent @ w["cell.weight_latent"].T + w["cell.bias_ih"]
    return lstm(gates + h @ w["cell.weight_hh"].T, c)


def lstm(gates: Array, c: Array) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def flat(function: Any, *xs: Array) -> Any:
    """A function of rows at all rows of all steps, as products of two matrices."""
    found = function(*(x.reshape(-1, x.shape[-1]) for x in xs))
    return jax.tree.map(lambda part: part.reshape(*xs[0].shape[:-1], -1), found)


def bound(w: Weights, shape: Any, x: Array, noise: Array) -> Array:
    """The ELBO (B,) of x (T, B, X) at the draws of ε (T, B, Z)."""
    features = jax.nn.relu(flat(partial(mlp, w, "inputs"), x))
    width = features.shape[-1]
    inputs = flat(lambda f: f @ w["cell.weight_inputs"].T + w["cell.bias_ih"], features)
    read = flat(lambda f: f @ w["encoder.weight_0"][:, :width].T + w["encoder.bias_0"], features)
    of_state = w["encoder.weight_0"][:, width:].T

    def step(state: tuple[Array, Array], at: Any) -> Any:
        (h, c), (u, e, epsilon) = state, at
        found = jax.nn.relu(e + h @ of_state) @ w["posterior.weight"].T
        loc, log_variance = jnp.split(found, 2, axis=-1)
        mean = loc + prior(w, h)[0] if shape.residual else loc
        latent = jax.nn.relu(mlp(w, "latents", mean + jnp.exp(0.5 * log_variance) * epsilon))
        gates = u + latent @ w["cell.weight_latent"].T + h @ w["cell.weight_hh"].T
        return lstm(gates, c), (h, loc, log_variance, latent)

    zeros = jnp.zeros((shape.rows, shape.hidden))
    _, (h, loc, log_variance, latent) = jax.lax.scan(step, (zeros, zeros), (inputs, read, noise))
    p_loc, p_log_variance = flat(partial(prior, w), h)
    difference = loc if shape.residual else loc - p_loc
    kl = 0.5 * (
        p_log_variance - log_variance - 1 + (jnp.exp(log_variance) + difference**2) / jnp.exp(p_log_variance)
    ).sum((0, 2))
    logits = flat(partial(emission, w), latent, h)
    return (x * logits - jax.nn.softplus(logits)).sum((0, 2)) - kl


def elbo(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The ELBO (B,) of x (B, T, X) at the draws of ε (T, B, Z)."""
    return np.asarray(bound(parameters(weights), shape, jnp.asarray(x).swapaxes(0, 1), jnp.asarray(noise)))


def parameters(weights: dict[str, np.ndarray]) -> Weights:
    return {name: jnp.asarray(value) for name, value in weights.items()}


def hand(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """A `lax.scan`, and optax's Adam, compiled together."""
    data, rule = jnp.asarray(x.swapaxes(0, 1)), optax.adam(1e-3)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(w: Weights, slots: Any, x: Array, key: Array) -> Any:
        noise = jax.random.normal(key, (shape.steps, shape.rows, shape.latent))
        value, gradient = jax.value_and_grad(lambda w: -bound(w, shape, x, noise).mean())(w)
        updates, slots = rule.update(gradient, slots, w)
        return optax.apply_updates(w, updates), slots, value

    w = parameters(weights)
    held, keys = [(w, rule.init(w))], iter(range(10**9))

    def step() -> float:
        w, slots, value = update(*held[0], data, jax.random.key(next(keys)))
        held[0] = w, slots
        return float(value)

    return step


def stock(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """A `scan` over steps with their sites, `TraceMeanField_ELBO` and stock SVI."""
    initial, data = parameters(weights), jnp.asarray(x.swapaxes(0, 1))
    zeros = jnp.zeros((shape.rows, shape.hidden))

    def shared() -> Any:
        return {name: numpyro.param(name, value) for name, value in initial.items()}

    def model(x: Array) -> None:
        w = shared()

        def step(state: Any, x: Array) -> Any:
            h, c = state
            loc, log_variance = prior(w, h)
            with numpyro.plate("sequences", shape.rows):
                z: Any = numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))
                latent = jax.nn.relu(mlp(w, "latents", z))
                notes: Any = dist.BernoulliLogits(emission(w, latent, h))
                numpyro.sample("x", notes.to_event(1), obs=x)
            return cell(w, jax.nn.relu(mlp(w, "inputs", x)), latent, h, c), None

        scan(step, (zeros, zeros), x)

    def guide(x: Array) -> None:
        w = shared()

        def step(state: Any, x: Array) -> Any:
            h, c = state
            features = jax.nn.relu(mlp(w, "inputs", x))
            loc, log_variance = posterior(w, features, h)
            loc = loc + prior(w, h)[0] if shape.residual else loc
            with numpyro.plate("sequences", shape.rows):
                z: Any = numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))
            return cell(w, features, jax.nn.relu(mlp(w, "latents", z)), h, c), None

        scan(step, (zeros, zeros), x)

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    held, update = [svi.init(jax.random.key(0), data)], jax.jit(svi.update)

    def step() -> float:
        held[0], value = update(held[0], data)
        return float(value)

    return step
