"""Steps of denoising attention and of what it is measured against, on JAX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.measuring import Step
from guidebook.engines.numpyro.denoising import Atoms, Components, Projections, attend, mean_measure, sampled

Arrays = Mapping[str, np.ndarray]


def training(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, and back from a given gradient of the output to queries, vectors, weights and projections."""
    x = {name: jnp.asarray(array) for name, array in arrays.items()}
    inputs = [x[name] for name in ("y", "z", "log_weight", "query", "key", "value")]

    def step(forward: Callable[..., Array]) -> Step:
        def both(*inputs: Array) -> Any:
            found, back = jax.vjp(forward, *inputs)
            return found, back(x["upstream"])

        return _compiled(both, *inputs)

    def ours(y: Array, z: Array, log_weight: Array, *weights: Array) -> Array:
        projections = Projections(*weights)
        return attend(y, sampled(Atoms(z, log_weight), projections, heads), projections)

    return {"ours": step(ours), "plain": step(lambda y, z, _, *weights: plain(y, z, heads, *weights))}


def scalar(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, with one variance for each component."""
    x = {name: jnp.asarray(array) for name, array in arrays.items()}

    def ours(x: Mapping[str, Array]) -> Array:
        projections = Projections(x["query"], x["key"], x["value"])
        components = Components(x["log_weight"], x["z"], x["variance"][..., :1])
        return attend(x["y"], mean_measure(components, projections, heads), projections)

    return {
        "ours": _compiled(ours, x),
        "plain": _compiled(lambda x: plain(x["y"], x["z"], heads, x["query"], x["key"], x["value"]), x),
    }


def general(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, with a variance for each coordinate; once it gives what the usual design gives by the same rule."""
    x = {name: jnp.asarray(array) for name, array in arrays.items()}

    def ours(rule: Any = "exact", precision: str = "float32") -> Callable[[Mapping[str, Array]], Array]:
        def run(x: Mapping[str, Array]) -> Array:
            projections = Projections(x["query"], x["key"], x["value"])
            keys = mean_measure(Components(x["log_weight"], x["z"], x["variance"]), projections, heads, rule)
            return attend(x["y"], keys, projections, precision=precision)

        return run

    def stock(x: Mapping[str, Array]) -> Array:
        return usual(x, heads)

    np.testing.assert_allclose(ours("reference")(x), stock(x), rtol=1e-3, atol=1e-4)
    steps = {"ours": ours(), "stock": stock, "bfloat16": ours(precision="bfloat16")}
    return {name: _compiled(step, x) for name, step in steps.items()}


def plain(y: Array, z: Array, heads: int, *weights: Array) -> Array:
    """Multi-head attention over the vectors themselves."""
    split = ((x @ w.T).reshape(*x.shape[:-1], heads, len(w) // heads) for x, w in zip((y, z, z), weights, strict=True))
    found = jax.nn.dot_product_attention(*split)
    return found.reshape(*found.shape[:-2], -1)


def usual(x: Mapping[str, Array], heads: int) -> Array:
    """The published design: queries, logits, means and gates at width p in every head, without the term in u²."""
    lift, value = (x[name].reshape(heads, -1, x[name].shape[-1]) for name in ("key", "value"))
    root = lift.shape[-2] ** 0.5
    query = x["y"] @ x["query"].T
    query = jnp.swapaxes(query.reshape(*query.shape[:-1], heads, -1), -3, -2)
    u = query @ lift
    s = root + x["variance"]
    bias = x["log_weight"] - 0.5 * (x["z"] ** 2 / s).sum(-1) - 0.5 * jnp.log(s).sum(-1)
    logits = jnp.einsum("bhqp,bkp->bhqk", u, x["z"] / s) + bias[:, None, None]
    weights = jax.nn.softmax(logits, -1)
    mean = jnp.einsum("bhqk,bkp->bhqp", weights, x["z"] * root / s)
    gate = jnp.einsum("bhqk,bkp->bhqp", weights, x["variance"] / s)
    found = jnp.swapaxes((mean + gate * u) @ jnp.swapaxes(value, -2, -1), -3, -2)
    return found.reshape(*found.shape[:-2], -1)


def _compiled(f: Callable[..., Any], *inputs: Any) -> Step:
    made = jax.jit(f).lower(*inputs).compile()
    return lambda: jax.block_until_ready(made(*inputs))
