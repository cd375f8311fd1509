"""Recurrent cells that read the data and a latent, on NumPyro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from ...models import cells
from .module import Realised
from .precision import onto, product
from .recurrence import gru, gru_cell, lstm_cell

State = tuple[Array, ...]


class RecurrentCell(Realised):
    """h_{t+1} = cell()(cell.project(u_t), v_t, h_t); h is (h, c) for the LSTM and (h,) for the GRU."""

    def start(self, shape: tuple[int, ...]) -> State:
        """Zeros, with these leading dimensions."""
        zeros = jnp.zeros((*shape, self.spec.hidden), self.weights["weight_hh"].dtype)
        return (zeros,) * (2 if self.spec.kind == "lstm" else 1)

    def project(self, inputs: Array) -> Array:
        """W_u u + b, (…, gates·H)."""
        return product(inputs, self.weights["weight_inputs"]) + self.weights["bias_ih"]

    def __call__(self) -> Callable[[Array, Array, State], State]:
        """h_{t+1} of (projected u_t, v_t, h_t) for all steps of a loop; projected broadcasts against particles."""
        if self.spec.kind == "gru":
            return self._gru
        names = (name for name in ("weight_latent", "weight_hh") if name in self.weights)
        weight = jnp.concatenate([self.weights[name] for name in names], 1)
        return lambda projected, latent, state: self._lstm(projected, latent, state, weight)

    def _lstm(self, projected: Array, latent: Array, state: State, weight: Array) -> State:
        before = jnp.broadcast_to(state[0], (*latent.shape[:-1], self.spec.hidden))
        return lstm_cell(onto(jnp.concatenate((latent, before), -1), projected, weight), state[1])

    def _gru(self, projected: Array, latent: Array, state: State) -> State:
        by_latent = self.weights.get("weight_latent")
        gates = projected if by_latent is None else onto(latent, projected, by_latent)
        recurrent = onto(state[0], self.weights["bias_hh"], self.weights["weight_hh"])
        return (gru_cell(gates, recurrent, state[0]),)


class GRULayer(Realised):
    """d_2 … d_{T+1}: layer(u (T, …, E), d_1 (…, H)) is (T, …, H)."""

    def __call__(self, inputs: Array, first: Array) -> Array:
        rows, steps, hidden = first.shape[:-1], len(inputs), self.spec.hidden
        projected = jnp.broadcast_to(product(inputs, self.weights["weight_ih"]), (steps, *rows, 3 * hidden))
        first = first.reshape(1, -1, hidden)
        constant = jnp.broadcast_to(self.weights["bias_ih"], (1, first.shape[1], 3 * hidden))
        weights = self.weights["weight_hh"], self.weights["bias_hh"]
        states: Any = gru(projected.reshape(steps, -1, 3 * hidden), constant, first, *weights, self.precision)
        return states.reshape(steps, *rows, hidden)


CELLS: dict[type, type[Realised]] = {
    cells.LSTMCell: RecurrentCell,
    cells.GRUCell: RecurrentCell,
    cells.GRULayer: GRULayer,
}
