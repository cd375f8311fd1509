"""The specs realised as torch modules: which conditional each network parameterises, in its class.

Parameters carry the names and the layout of `spec.layout`; `weights` (NumPy, by name) is where they start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

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
from .precision import _twice, check_precision, product, products_in
from .priors import PRIORS
from .recurrence import _LIBRARY_DEVICES, _by_library, _joined, gru, gru_cell, lstm, lstm_cell
from .transformers import TRANSFORMERS

State = tuple[Tensor, ...]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def realise(
    network: Network, weights: Mapping[str, np.ndarray], *, dtype: str = "float32", precision: str = "float32"
) -> Any:
    """The torch module for `network`, started at `weights`; a framework module in it is returned as it is.

    `dtype` stores the weights; with `precision` "bfloat16" the large products round their operands to
    bfloat16 and accumulate in float32. Raises `BadInput` for a weight that is missing, unknown or of another
    shape.
    """
    if not network.declared:
        return network.spec
    if dtype not in DTYPES:
        raise BadInput(f"dtype is one of {', '.join(DTYPES)}, not {dtype!r}")
    for base, realised in REALISED.items():
        if isinstance(network.spec, base):
            return realised(network, _checked(network, weights), DTYPES[dtype], check_precision(precision))
    raise BadInput(f"the Pyro engine has no network for the kind {network.spec.kind!r}")


def _checked(network: Network, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    wanted = {name: weight.shape for name, weight in network.spec.layout(**network.sizes).items()}
    given = {name: tuple(np.shape(array)) for name, array in weights.items()}
    for name in wanted.keys() | given.keys():
        if wanted.get(name) != given.get(name):
            kind = network.spec.kind
            raise BadInput(f"weight {name!r} of the {kind} network has shape {given.get(name)}, not {wanted.get(name)}")
    return weights


class Recurrent(Realised):
    """One recurrent layer over embedded tokens, which may read a latent z (S, B, Z) at every step."""

    embedding: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor
    initial: Tensor

    def _run(self, tokens: Tensor, z: Tensor | None, shape: tuple[int, int], dropout: float = 0.0) -> Tensor:
        """States (T, S, B, H) after each of `tokens` (B, T); `shape` is (S, B)."""
        embedded = dropped(F.embedding(tokens.t(), self.embedding), dropout if self.training else 0.0)
        return self._read(embedded, z, shape)

    def _read(self, embedded: Tensor, z: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """The same from embeddings (T, B, E)."""
        initial = self._initial(z, shape)
        if embedded.device.type in _LIBRARY_DEVICES and not _twice():
            return _by_library(self.spec.kind, _joined(embedded, z, shape), initial, *self._cell_weights())
        projected = product(embedded, self._input_weights()[0], self.precision)
        constant = self._constant(z, shape)
        if self.spec.kind == "lstm":
            h, c = initial
            return lstm(projected, constant, h, c, self.weight_hh, self.precision)
        return gru(projected, constant, initial[0], self.weight_hh, self.bias_hh, self.precision)

    def _initial(self, z: Tensor | None, shape: tuple[int, int]) -> State:
        """h_0 and, for an LSTM, c_0, each (S, B, H)."""
        states = 2 if self.spec.kind == "lstm" else 1
        if z is None:
            return (self.weight_hh.new_zeros(*shape, self.spec.hidden),) * states
        start = F.linear(z, self.initial)
        return (start.tanh(), start)[:states]

    def _constant(self, z: Tensor | None, shape: tuple[int, int]) -> Tensor:
        """What z and the bias add to the gates of every step (S, B, gates·H)."""
        if z is None:
            return self.bias_ih.expand(*shape, -1)
        return F.linear(z, self._input_weights()[1], self.bias_ih)

    def _input_weights(self) -> tuple[Tensor, ...]:
        """The columns of `weight_ih` that read the token, and those that read z."""
        embedding = self.spec.embedding
        return self.weight_ih.split((embedding, self.weight_ih.shape[1] - embedding), 1)

    def _cell_weights(self) -> tuple[Tensor, ...]:
        bias = torch.zeros_like(self.bias_ih) if self.spec.kind == "lstm" else self.bias_hh
        return self.weight_ih, self.weight_hh, self.bias_ih, bias


class RecurrentDecoder(Recurrent):
    """p(x_t | x_<t, z), t = 1 … T: `decoder(z, inputs, lengths)` is the distribution of the sentence."""

    output: Tensor

    def forward(self, z: Tensor | None, inputs: Tensor, lengths: Tensor) -> TokenSequence:
        """z (B, Z), (S, B, Z) or None; inputs (B, T) from bos on; lengths (B,) predicted tokens."""
        states = dropped(self.states(z, inputs), self.spec.dropout if self.training else 0.0)
        return TokenSequence(states, self.output_weight, lengths, decoder=self, z=z, precision=self.precision)

    def states(self, z: Tensor | None, inputs: Tensor) -> Tensor:
        """Teacher-forced states (B, T, H) or (S, B, T, H), before the output dropout."""
        rows = len(inputs)
        shape = (len(z), rows) if z is not None and z.dim() == 3 else (1, rows)
        states = self._run(inputs, self._latent(z, shape), shape, self.spec.dropout).permute(1, 2, 0, 3)
        return states if z is not None and z.dim() == 3 else states.squeeze(0)

    def _latent(self, z: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
        """z as (S, B, Z)."""
        latent = self.sizes["latent"]
        if z is None and latent == 0:
            return None
        if z is None:
            return self.weight_hh.new_zeros(*shape, latent)
        if z.shape[-1] != latent:
            raise BadInput(f"the decoder reads latents of {latent} dimensions, not {z.shape[-1]}")
        return z.expand(*shape, -1)

    @property
    def output_weight(self) -> Tensor:
        """(V, H)."""
        return self.embedding if self.spec.tie_embeddings else self.output

    @torch.no_grad()
    def start(self, z: Tensor | None, rows: int, steps: int) -> State:
        """The state before the first token, from z (rows or 1, Z): h, (c,) and z's part of the gates. steps: not read."""
        shape = (1, rows)
        z = self._latent(z, shape)
        return tuple(part[0] for part in (*self._initial(z, shape), self._constant(z, shape)))

    @torch.no_grad()
    def step(self, state: State, tokens: Tensor) -> tuple[State, Tensor]:
        """The state after `tokens` (N,), and the logits (N, V) of the next ones; no dropout, no gradients."""
        *before, constant = state
        with products_in(self.precision):
            after = self._cell(before, constant, F.embedding(tokens, self.embedding))
            return (*after, constant), after[0] @ self.output_weight.t()

    def _cell(self, before: list[Tensor], constant: Tensor, embedded: Tensor) -> State:
        projected = F.linear(embedded, self._input_weights()[0]).add_(constant)
        if self.spec.kind == "lstm":
            return lstm_cell(projected.addmm_(before[0], self.weight_hh.t()), before[1])
        return (gru_cell(projected, F.linear(before[0], self.weight_hh, self.bias_hh), before[0]),)


class RecurrentEncoder(Recurrent):
    """h of q(z | x): encoder(tokens (B, T + 1), lengths (B,)) pools the states after that many tokens to (B, H)."""

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self._pooled(self._run(tokens, None, (1, len(tokens))).squeeze(1), lengths.clamp(min=1))

    def read(self, embedded: Tensor) -> Tensor:
        """(B, H) from embeddings in place of tokens, (B, T, E), all of them read."""
        rows, steps, _ = embedded.shape
        states = self._read(embedded.transpose(0, 1), None, (1, rows)).squeeze(1)
        return self._pooled(states, torch.full((rows,), steps, device=embedded.device))

    def _pooled(self, states: Tensor, lengths: Tensor) -> Tensor:
        """(B, H) from states (T, B, H), the first `lengths` of them."""
        steps, rows, _ = states.shape
        if self.spec.pooling == "last":
            return states[lengths - 1, torch.arange(rows, device=states.device)]
        pads = (torch.arange(steps, device=states.device).unsqueeze(-1) >= lengths).unsqueeze(-1)
        if self.spec.pooling == "max":
            return states.masked_fill(pads, -math.inf).amax(0)
        return states.masked_fill(pads, 0.0).sum(0) / lengths.unsqueeze(-1)


class RecurrentBackward(Realised):
    """b_t from e_T … e_t: backward(e (T, B, E), mask (T, B)) is (T, B, H); steps outside the mask are not read."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor

    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:
        order, back = (index.unsqueeze(-1) for index in _reversed(mask))
        projected = product(inputs.gather(0, order.expand_as(inputs)), self.weight_ih, self.precision)
        rows, hidden = inputs.shape[1], self.spec.hidden
        zeros, constant = inputs.new_zeros(1, rows, hidden), self.bias_ih.expand(1, rows, -1)
        if self.spec.kind == "lstm":
            states = lstm(projected, constant, zeros, zeros, self.weight_hh, self.precision)
        else:
            states = gru(projected, constant, zeros, self.weight_hh, self.get_parameter("bias_hh"), self.precision)
        states = states.squeeze(1)
        return states.gather(0, back.expand_as(states))


def _reversed(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The steps in which each row is read, real ones from the last to the first and then the others, and its inverse.

    (T, B) both.
    """
    back = torch.where(mask, mask.sum(0) - mask.cumsum(0), mask.sum(0) - 1 + (~mask).cumsum(0))
    time = torch.arange(len(mask), device=mask.device).unsqueeze(-1).expand_as(back)
    return torch.zeros_like(back).scatter(0, back, time), back


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
