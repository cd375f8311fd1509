"""The specs realised as Equinox modules: which conditional each network parameterises, in its class.

Every weight of a module is in its one field `weights`, under the names and in the layout of `spec.layout`.
A call with `key` is training (dropout); without one it is evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...guides import encoders
from ...models import decoders, mlp
from ...models.errors import BadInput
from ...models.spec import Network
from .cells import CELLS
from .distributions import TokenSequence
from .dropout import dropped
from .latent_weights import LATENT_WEIGHTS
from .likelihoods import LIKELIHOODS
from .linear_gaussian import LINEAR_GAUSSIAN
from .measures import MEASURES
from .mlp import MLP
from .module import Realised
from .posteriors import POSTERIORS
from .precision import check_precision, product
from .priors import PRIORS
from .recurrence import gru, gru_cell, lstm, lstm_cell
from .transformers import TRANSFORMERS

State = tuple[Array, ...]
DTYPES = ("float32", "float64")


def realise(
    network: Network, weights: Mapping[str, np.ndarray], *, dtype: str = "float32", precision: str = "float32"
) -> Any:
    """The Equinox module for `network`, started at `weights`; a framework module in it is returned as it is.

    `dtype` stores the weights ("float64" needs `jax_enable_x64`); with `precision` "bfloat16" the large
    products round their operands to bfloat16 and accumulate in float32. Raises `BadInput` for a weight that is
    missing, unknown or of another shape.
    """
    if not network.declared:
        return network.spec
    if dtype not in DTYPES:
        raise BadInput(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise BadInput("dtype 'float64' needs JAX's 64-bit mode: set jax_enable_x64")
    for base, realised in REALISED.items():
        if isinstance(network.spec, base):
            arrays = {name: jnp.asarray(array, dtype) for name, array in _checked(network, weights).items()}
            return realised(arrays, network.spec, check_precision(precision), tuple(network.sizes.items()))
    raise BadInput(f"the NumPyro engine has no network for the kind {network.spec.kind!r}")


def _checked(network: Network, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    wanted = {name: weight.shape for name, weight in network.spec.layout(**network.sizes).items()}
    given = {name: tuple(np.shape(array)) for name, array in weights.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            kind = network.spec.kind
            raise BadInput(f"weight {name!r} of the {kind} network has shape {given.get(name)}, not {wanted.get(name)}")
    return weights


class Recurrent(Realised):
    """One recurrent layer over embedded tokens."""

    def _projected(self, tokens: Array, dropout: float = 0.0, key: Array | None = None) -> Array:
        """What the tokens (B, T) add to the gates, time-major: (T, B, gates·H)."""
        embedded = dropped(self.weights["embedding"][tokens.T], dropout, key)
        return product(embedded, self._word_weight, self.precision)

    @property
    def _word_weight(self) -> Array:
        return self.weights["weight_ih"][:, : self.spec.embedding]

    def _zeros(self, shape: tuple[int, int]) -> tuple[Array, State]:
        """The constant part of the gates (S, B, gates·H) and the initial state without a latent."""
        bias = self.weights["bias_ih"]
        zeros = jnp.zeros((*shape, self.spec.hidden), bias.dtype)
        return jnp.broadcast_to(bias, (*shape, bias.size)), (zeros, zeros) if self._is_lstm else (zeros,)

    def _run(self, projected: Array, constant: Array, initial: State) -> Array:
        """States (T, S, B, H)."""
        weight = self.weights["weight_hh"]
        if self._is_lstm:
            return lstm(projected, constant, *initial, weight, self.precision)
        return gru(projected, constant, *initial, weight, self.weights["bias_hh"], self.precision)

    @property
    def _is_lstm(self) -> bool:
        return self.spec.kind == "lstm"


class RecurrentDecoder(Recurrent):
    """p(x_t | x_<t, z), t = 1 … T: `decoder(z, inputs, lengths)` is the distribution of the sentence."""

    def __call__(self, z: Array | None, inputs: Array, lengths: Array, *, key: Array | None = None) -> TokenSequence:
        """z (B, Z), (S, B, Z) or None; inputs (B, T) from bos on; lengths (B,) predicted tokens."""
        word_key, state_key = (None, None) if key is None else jax.random.split(key)
        states = dropped(self.states(z, inputs, key=word_key), self.spec.dropout, state_key)
        return TokenSequence(states, self.output_weight, lengths, decoder=self, z=z, precision=self.precision)

    def states(self, z: Array | None, inputs: Array, *, key: Array | None = None) -> Array:
        """Teacher-forced states (B, T, H) or (S, B, T, H), before the output dropout."""
        rows = len(inputs)
        if z is not None and (z.ndim not in (2, 3) or z.shape[-2] not in (1, rows)):
            raise BadInput(f"the decoder reads latents (B, Z) or (S, B, Z) with B = {rows}, not {z.shape}")
        projected = self._projected(inputs, self.spec.dropout, key)
        if z is None or z.ndim == 2:
            return self._run(projected, *self._latent(z, (1, rows)))[:, 0].swapaxes(0, 1)
        return self._run(projected, *self._latent(z, (len(z), rows))).transpose(1, 2, 0, 3)

    def _latent(self, z: Array | None, shape: tuple[int, int]) -> tuple[Array, State]:
        """What z adds to the gates of every step (S, B, gates·H), and the initial state."""
        if z is None or "initial" not in self.weights:
            return self._zeros(shape)
        latent = self.weights["initial"].shape[1]
        if z.shape[-1] != latent:
            raise BadInput(f"the decoder reads latents of {latent} dimensions, not {z.shape[-1]}")
        z = jnp.broadcast_to(z, (*shape, latent))
        constant = product(z, self.weights["weight_ih"][:, self.spec.embedding :]) + self.weights["bias_ih"]
        start = product(z, self.weights["initial"])
        return constant, (jnp.tanh(start), start) if self._is_lstm else (jnp.tanh(start),)

    @property
    def output_weight(self) -> Array:
        """(V, H)."""
        return self.weights["embedding" if self.spec.tie_embeddings else "output"]

    def start(self, z: Array | None, rows: int, steps: int) -> State:
        """The state before the first token: h, (c,), z's part of the gates, each (rows, …). z: (rows or 1, Z). steps: not
        read.
        """
        constant, initial = self._latent(z, (1, rows))
        return (*(state[0] for state in initial), constant[0])

    def step(self, state: State, tokens: Array) -> tuple[State, Array]:
        """The state after `tokens` (N,), and the logits (N, V) of the next ones. Without dropout."""
        *before, constant = state
        projected = product(self.weights["embedding"][tokens], self._word_weight, self.precision) + constant
        recurrent = product(before[0], self.weights["weight_hh"], self.precision)
        if self._is_lstm:
            after = lstm_cell(projected + recurrent, before[1])
        else:
            after = (gru_cell(projected, recurrent + self.weights["bias_hh"], before[0]),)
        return (*after, constant), product(after[0], self.output_weight, self.precision)


class RecurrentEncoder(Recurrent):
    """h of q(z | x): encoder(tokens (B, T + 1), lengths (B,)) pools the states after that many tokens to (B, H)."""

    def __call__(self, tokens: Array, lengths: Array, *, key: Array | None = None) -> Array:
        states = self._run(self._projected(tokens), *self._zeros((1, len(tokens))))[:, 0]
        return self._pooled(states, jnp.maximum(lengths, 1))

    def read(self, embedded: Array) -> Array:
        """(B, H) from embeddings in place of tokens, (B, T, E), all of them read."""
        rows, steps, _ = embedded.shape
        projected = product(embedded.swapaxes(0, 1), self._word_weight, self.precision)
        return self._pooled(self._run(projected, *self._zeros((1, rows)))[:, 0], jnp.full(rows, steps))

    def _pooled(self, states: Array, lengths: Array) -> Array:
        """(B, H) from states (T, B, H), the first `lengths` of them."""
        steps, rows, _ = states.shape
        if self.spec.pooling == "last":
            return states[lengths - 1, jnp.arange(rows)]
        real = (jnp.arange(steps)[:, None] < lengths)[..., None]
        if self.spec.pooling == "max":
            return states.max(0, where=real, initial=-jnp.inf)
        return states.sum(0, where=real) / lengths[:, None]


class RecurrentBackward(Realised):
    """b_t from e_T … e_t: backward(e (T, B, E), mask (T, B)) is (T, B, H); steps outside the mask are not read."""

    def __call__(self, inputs: Array, mask: Array) -> Array:
        order, back = (index[..., None] for index in _reversed(mask))
        projected = product(jnp.take_along_axis(inputs, order, 0), self.weights["weight_ih"], self.precision)
        rows, hidden = inputs.shape[1], self.spec.hidden
        zeros = jnp.zeros((1, rows, hidden), inputs.dtype)
        constant = jnp.broadcast_to(self.weights["bias_ih"], (1, rows, projected.shape[-1]))
        if self.spec.kind == "lstm":
            states: Any = lstm(projected, constant, zeros, zeros, self.weights["weight_hh"], self.precision)
        else:
            weights = self.weights["weight_hh"], self.weights["bias_hh"]
            states = gru(projected, constant, zeros, *weights, self.precision)
        return jnp.take_along_axis(states.squeeze(1), back, 0)


def _reversed(mask: Array) -> tuple[Array, Array]:
    """The steps in which each row is read, real ones from the last to the first and then the others, and its inverse.

    (T, B) both.
    """
    back = jnp.where(mask, mask.sum(0) - jnp.cumsum(mask, 0), mask.sum(0) - 1 + jnp.cumsum(~mask, 0))
    time = jnp.broadcast_to(jnp.arange(len(mask))[:, None], mask.shape)
    return jnp.zeros_like(back).at[back, jnp.arange(mask.shape[1])].set(time), back


REALISED: dict[type, type[Realised]] = {
    decoders.RecurrentDecoder: RecurrentDecoder,
    **TRANSFORMERS,
    encoders.RecurrentEncoder: RecurrentEncoder,
    encoders.LSTMBackward: RecurrentBackward,
    encoders.GRUBackward: RecurrentBackward,
    **LATENT_WEIGHTS,
    mlp.MLP: MLP,
    **CELLS,
    **LINEAR_GAUSSIAN,
    **PRIORS,
    **POSTERIORS,
    **LIKELIHOODS,
    **MEASURES,
}
