"""The time loop of one recurrent layer, with a backward pass of its own.

    LSTM   i, f, o = σ(·), g = tanh(·) of  u_t + a + W h_{t-1};   c_t = f c_{t-1} + i g;   h_t = o tanh(c_t)
    GRU    r, z = σ(u_t + a + W h_{t-1} + b);  n = tanh(u_t + a + r (W h_{t-1} + b));  h_t = n + z (h_{t-1} − n)

u_t is the part of the input projection that differs from step to step and is shared by the particles, a the part
that holds for all steps; their sum exists one step at a time. The backward loop is linear in the gradients that
flow in, with factors formed for all steps at once; the weight's gradient is one product after it.
Shapes: u (T, B, gates·H), a (S, B, gates·H), h_0 and c_0 (S, B, H), W (gates·H, H), states (T, S, B, H).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from .precision import _product_over_rows, _product_with, product


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def lstm(inputs: Array, constant: Array, h: Array, c: Array, weight: Array, precision: str = "float32") -> Array:
    """States h_1 … h_T of an LSTM layer (T, S, B, H), from u, a, h_0, c_0 and W."""

    def step(state, u):
        state = lstm_cell(u + constant + product(state[0], weight, precision), state[1])
        return state, state[0]

    return jax.lax.scan(step, (h, c), inputs)[1]


def lstm_cell(gates: Array, c: Array) -> tuple[Array, Array]:
    """(h_t, c_t) from the gates' pre-activations (…, 4H) and c_{t-1} (…, H)."""
    i, f, g, o = _activate(gates)
    c = f * c + i * g
    return o * jnp.tanh(c), c


def _activate(gates: Array) -> tuple[Array, Array, Array, Array]:
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    return jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)


def _lstm_fwd(inputs, constant, h, c, weight, precision):
    def step(state, u):
        gates = u + constant + product(state[0], weight, precision)
        state = lstm_cell(gates, state[1])
        return state, (*state, gates)

    _, (states, cells, gates) = jax.lax.scan(step, (h, c), inputs)
    return states, (states, cells, gates, h, c, weight)


def _lstm_bwd(precision, residuals, upstream):
    states, cells, gates, h, c, weight = residuals
    i, f, g, o = _activate(gates)
    tanh = jnp.tanh(cells)
    through = o * (1 - tanh**2)
    d_cell = jnp.concatenate([g * i * (1 - i), _shifted(c, cells) * f * (1 - f), i * (1 - g**2)], axis=-1)
    d_output = tanh * o * (1 - o)

    def step(carry, at):
        (dh, dc), (upstream, through, d_cell, d_output, f) = carry, at
        dh = dh + upstream
        dc = dc + dh * through
        d_gates = jnp.concatenate([d_cell * jnp.tile(dc, 3), d_output * dh], axis=-1)
        return (_product_with(d_gates, weight, precision), dc * f), d_gates

    factors = (upstream, through, d_cell, d_output, f)
    zeros = (jnp.zeros_like(h), jnp.zeros_like(c))
    (dh, dc), d_gates = jax.lax.scan(step, zeros, factors, reverse=True)
    return d_gates.sum(1), d_gates.sum(0), dh, dc, _product_over_rows(d_gates, _shifted(h, states), precision)


lstm.defvjp(_lstm_fwd, _lstm_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def gru(inputs: Array, constant: Array, h: Array, weight: Array, bias: Array, precision: str = "float32") -> Array:
    """States h_1 … h_T of a GRU layer (T, S, B, H), from u, a, h_0, W and b."""

    def step(h, u):
        h = gru_cell(u + constant, product(h, weight, precision) + bias, h)
        return h, h

    return jax.lax.scan(step, h, inputs)[1]


def gru_cell(projected: Array, recurrent: Array, h: Array) -> Array:
    """h_t from u_t + a (…, 3H), W h_{t-1} + b (…, 3H) and h_{t-1} (…, H)."""
    _, z, n, _ = _gru_gates(projected, recurrent)
    return n + z * (h - n)


def _gru_gates(projected: Array, recurrent: Array) -> tuple[Array, Array, Array, Array]:
    (r, z, n), (recurrent_r, recurrent_z, recurrent_n) = (
        jnp.split(part, 3, axis=-1) for part in (projected, recurrent)
    )
    r, z = jax.nn.sigmoid(r + recurrent_r), jax.nn.sigmoid(z + recurrent_z)
    return r, z, jnp.tanh(n + r * recurrent_n), recurrent_n


def _gru_fwd(inputs, constant, h, weight, bias, precision):
    def step(h, u):
        r, z, n, recurrent_n = _gru_gates(u + constant, product(h, weight, precision) + bias)
        h = n + z * (h - n)
        return h, (h, r, z, n, recurrent_n)

    _, saved = jax.lax.scan(step, h, inputs)
    return saved[0], (saved, h, weight)


def _gru_bwd(precision, residuals, upstream):
    (states, r, z, n, recurrent_n), h, weight = residuals
    before = _shifted(h, states)
    d_n = (1 - z) * (1 - n**2)
    factors = jnp.concatenate([d_n * recurrent_n * r * (1 - r), (before - n) * z * (1 - z), d_n * r], axis=-1)

    def step(dh, at):
        upstream, factors, z = at
        dh = dh + upstream
        d_gates = factors * jnp.tile(dh, 3)
        return dh * z + _product_with(d_gates, weight, precision), (d_gates, dh)

    dh, (d_gates, flowing) = jax.lax.scan(step, jnp.zeros_like(h), (upstream, factors, z), reverse=True)
    hidden = h.shape[-1]
    d_inputs = jnp.concatenate([d_gates[..., : 2 * hidden], d_n * flowing], axis=-1)
    d_weight = _product_over_rows(d_gates, before, precision)
    return d_inputs.sum(1), d_inputs.sum(0), dh, d_weight, d_gates.sum((0, 1, 2))


gru.defvjp(_gru_fwd, _gru_bwd)


def _shifted(first: Array, later: Array) -> Array:
    """What stood before each step."""
    return jnp.concatenate([first[None], later[:-1]])
