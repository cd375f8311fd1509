"""Recurrent cells that read the data and a latent, on Pyro."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models import cells
from .module import Realised
from .precision import _linear, onto
from .recurrence import gru

State = tuple[Tensor, ...]


class RecurrentCell(Realised):
    """h_{t+1} = cell()(cell.project(u_t), v_t, h_t); h is (h, c) for the LSTM and (h,) for the GRU."""

    weight_inputs: Tensor
    weight_hh: Tensor
    bias_ih: Tensor

    def start(self, shape: tuple[int, ...]) -> State:
        """Zeros, with these leading dimensions."""
        zeros = self.weight_hh.new_zeros(*shape, self.spec.hidden)
        return (zeros,) * (2 if self.spec.kind == "lstm" else 1)

    def project(self, inputs: Tensor) -> Tensor:
        """W_u u + b, (…, gates·H)."""
        return F.linear(inputs, self.weight_inputs, self.bias_ih)

    def forward(self) -> Callable[[Tensor, Tensor, State], State]:
        """h_{t+1} of (projected u_t, v_t, h_t) for all steps of a loop; projected broadcasts against particles."""
        if self.spec.kind == "gru":
            return self._gru
        names = (name for name in ("weight_latent", "weight_hh") if hasattr(self, name))
        weight = torch.cat([self.get_parameter(name) for name in names], 1)  # once: one product a step
        return lambda projected, latent, state: self._lstm(projected, latent, state, weight)

    def _lstm(self, projected: Tensor, latent: Tensor, state: State, weight: Tensor) -> State:
        both = torch.cat((latent, state[0].expand(*latent.shape[:-1], -1)), -1)
        i, f, g, o = onto(both, projected, weight).chunk(4, -1)
        c = torch.addcmul(f.sigmoid() * state[1], i.sigmoid(), g.tanh())
        return o.sigmoid() * c.tanh(), c

    def _gru(self, projected: Tensor, latent: Tensor, state: State) -> State:
        hidden, by_latent = self.spec.hidden, getattr(self, "weight_latent", None)
        gates = projected if by_latent is None else onto(latent, projected, by_latent)
        recurrent = _linear(state[0], self.weight_hh, self.get_parameter("bias_hh"))
        r, z = (gates[..., : 2 * hidden] + recurrent[..., : 2 * hidden]).sigmoid().chunk(2, -1)
        n = torch.addcmul(gates[..., 2 * hidden :], r, recurrent[..., 2 * hidden :]).tanh()
        return (torch.lerp(n, state[0], z),)


class GRULayer(Realised):
    """d_2 … d_{T+1}: layer(u (T, …, E), d_1 (…, H)) is (T, …, H)."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def forward(self, inputs: Tensor, first: Tensor) -> Tensor:
        rows, hidden = first.shape[:-1], self.spec.hidden
        projected = F.linear(inputs, self.weight_ih).expand(-1, *rows, -1).reshape(len(inputs), -1, 3 * hidden)
        first = first.reshape(1, -1, hidden)
        constant = self.bias_ih.expand(1, first.shape[1], -1)
        states = gru(projected, constant, first, self.weight_hh, self.bias_hh, self.precision)
        return states.reshape(-1, *rows, hidden)


CELLS: dict[type, type[Realised]] = {
    cells.LSTMCell: RecurrentCell,
    cells.GRUCell: RecurrentCell,
    cells.GRULayer: GRULayer,
}
