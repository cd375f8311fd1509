"""The time loop of one recurrent layer, with a backward pass of its own.

    LSTM   i, f, o = σ(·), g = tanh(·) of  u_t + a + W h_{t-1};   c_t = f c_{t-1} + i g;   h_t = o tanh(c_t)
    GRU    r, z = σ(·), n = tanh(u_t + a + r (W h_{t-1} + b));   h_t = n + z (h_{t-1} − n),
           · = u_t + a + W h_{t-1} + b

u_t is the part of the input projection that differs from step to step and is shared by the particles, a the
part that holds for all steps; both come from one product outside the loop. The backward pass is linear in the
gradients that flow in, with factors formed for all steps at once, so that a step is one product and a few
elementwise passes. On CUDA the layer is cuDNN's, over the joined inputs: there a loop in Python waits for its
kernels. Shapes: u (T, B, gates·H), a (S, B, gates·H), h_0 and c_0 (S, B, H), W (gates·H, H), states (T, S, B,
H).
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import _is_reached, _twice, products_in

_LIBRARY_DEVICES = ("cuda",)


def _joined(embedded: Tensor, z: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """[e_t; z]: embedded (T, B, E) and z (S, B, Z) to (T, S, B, E + Z); `shape` is (S, B)."""
    steps = len(embedded)
    x = embedded.unsqueeze(1).expand(steps, *shape, -1)
    return x if z is None else torch.cat((x, z.expand(steps, *shape, -1)), -1)


def _by_library(kind: str, x: Tensor, initial: tuple[Tensor, ...], *weights: Tensor) -> Tensor:
    """States (T, S, B, H) of torch's own layer; `weights` are W_ih, W_hh, b_ih, b_hh."""
    flat = x.flatten(1, 2)
    start = tuple(state.reshape(1, flat.shape[1], -1) for state in initial)
    # biases, layers, dropout, training (cuDNN differentiates in this mode only), bidirectional, batch first
    options = (True, 1, 0.0, torch.is_grad_enabled(), False, False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
        if kind == "lstm":
            states = torch.lstm(flat, start, weights, *options)[0]
        else:
            states = torch.gru(flat, start[0], weights, *options)[0]
    return states.unflatten(1, x.shape[1:3])


def lstm(inputs: Tensor, constant: Tensor, h: Tensor, c: Tensor, weight: Tensor, precision: str = "float32") -> Tensor:
    """States h_1 … h_T of an LSTM layer (T, S, B, H), from u, a, h_0, c_0 and W."""
    tensors = (inputs, constant, h, c, weight)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _plain_lstm(*tensors) if _twice() else _LSTM.apply(*tensors, precision)
    with products_in(precision):
        return _lstm_states(*tensors)


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(h_t, c_t) from the gates' pre-activations (…, 4H), which are overwritten, and c_{t-1} (…, H)."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.addcmul(f.sigmoid_() * c, i.sigmoid_(), g.tanh_())
    return o.sigmoid_() * c.tanh(), c


def _lstm_states(inputs: Tensor, constant: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """States where no gradient is wanted: one step of gates and cells at a time."""
    states = h.new_empty(len(inputs), *h.shape)
    gates, flat, transposed = torch.empty_like(constant), h.reshape(-1, h.shape[-1]), weight.t()
    flat_gates = gates.view(-1, gates.shape[-1])
    for u, state in zip(inputs.unbind(), states.unbind(), strict=True):
        torch.add(constant, u, out=gates)
        h, c = lstm_cell(flat_gates.addmm_(flat, transposed).view_as(gates), c)
        flat = state.copy_(h).view(-1, h.shape[-1])
    return states


def _plain_lstm(inputs: Tensor, constant: Tensor, h: Tensor, c: Tensor, weight: Tensor) -> Tensor:
    """States by operations that autograd differentiates as often as it is asked to."""
    states = []
    for u in inputs.unbind():
        i, f, g, o = (u + constant + h @ weight.t()).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states)


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, constant: Tensor, h: Tensor, c: Tensor, weight: Tensor, precision: str
    ) -> Tensor:
        steps, hidden = len(inputs), h.shape[-1]
        gates = inputs.unsqueeze(1) + constant
        states, cells = (h.new_empty(steps + 1, *h.shape) for _ in range(2))
        tanhs = h.new_empty(steps, *h.shape)
        states[0], cells[0] = h, c
        flat, rows = _flat_steps(gates), _flat_steps(states)
        each = zip(*(part.unbind() for part in (*gates.chunk(4, -1), tanhs)), strict=True)
        both = gates[..., : 2 * hidden].unbind()  # i and f in one pass
        now, transposed = cells.unbind(), weight.t()
        after = states.unbind()
        with products_in(precision):
            for t, (i, f, g, o, tanh) in enumerate(each):
                flat[t].addmm_(rows[t], transposed)
                both[t].sigmoid_()
                torch.mul(f, now[t], out=now[t + 1]).addcmul_(i, g.tanh_())
                torch.mul(o.sigmoid_(), torch.tanh(now[t + 1], out=tanh), out=after[t + 1])
        ctx.save_for_backward(states, cells, tanhs, gates, weight)
        ctx.precision = precision
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, cells, tanhs, gates, weight = ctx.saved_tensors
        hidden = upstream.shape[-1]
        i, f, g, o = gates.chunk(4, -1)
        # dgates holds ∂gate/∂c (for o: ∂gate/∂h) until the loop reaches the step
        dgates, through = torch.empty_like(gates), torch.ops.aten.tanh_backward(o, tanhs)
        di, df, dg, do = dgates.chunk(4, -1)
        torch.ops.aten.sigmoid_backward(g, i, grad_input=di)
        torch.ops.aten.sigmoid_backward(cells[:-1], f, grad_input=df)
        torch.ops.aten.tanh_backward(i, g, grad_input=dg)
        torch.ops.aten.sigmoid_backward(tanhs, o, grad_input=do)
        by_cell = dgates.unflatten(-1, (4, hidden))[..., :3, :].unbind()
        flat, incoming = _flat_steps(dgates), _flat_steps(upstream.contiguous())
        each = list(zip(by_cell, *(part.unbind() for part in (do, f, through)), strict=True))
        dh, dc = upstream[-1], torch.zeros_like(cells[0])
        with products_in(ctx.precision):
            for t, (cell, out, forget, factor) in reversed(list(enumerate(each))):
                dc.addcmul_(dh, factor)
                cell.mul_(dc.unsqueeze(-2))
                out.mul_(dh)
                dc.mul_(forget)
                dh = (torch.addmm(incoming[t - 1], flat[t], weight) if t else flat[t] @ weight).view_as(dc)
            before = states[:-1].reshape(-1, hidden)
            dweight = dgates.view(-1, 4 * hidden).t() @ before if _is_reached(weight) else None
        return _over_particles(dgates), dgates.sum(0), dh, dc, dweight, None


def _flat_steps(x: Tensor) -> tuple[Tensor, ...]:
    """Each step of (T, S, B, …) as the rows of one product."""
    return x.view(len(x), -1, x.shape[-1]).unbind()


def _over_particles(gradient: Tensor) -> Tensor:
    """(T, S, B, …) to (T, B, …)."""
    return gradient.squeeze(1) if gradient.shape[1] == 1 else gradient.sum(1)


def gru(
    inputs: Tensor, constant: Tensor, h: Tensor, weight: Tensor, bias: Tensor, precision: str = "float32"
) -> Tensor:
    """States h_1 … h_T of a GRU layer (T, S, B, H), from u, a, h_0, W and b."""
    tensors = (inputs, constant, h, weight, bias)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return _plain_gru(*tensors) if _twice() else _GRU.apply(*tensors, precision)
    with products_in(precision):
        return _gru_loop(*tensors, keep=False)[0][1:]


def gru_cell(projected: Tensor, recurrent: Tensor, h: Tensor) -> Tensor:
    """h_t from u_t + a (…, 3H), overwritten; W h_{t-1} + b (…, 3H); and h_{t-1} (…, H)."""
    hidden = h.shape[-1]
    r, z = projected[..., : 2 * hidden].add_(recurrent[..., : 2 * hidden]).sigmoid_().chunk(2, -1)
    n = projected[..., 2 * hidden :].addcmul_(r, recurrent[..., 2 * hidden :]).tanh_()
    return torch.lerp(n, h, z)


def _gru_loop(
    inputs: Tensor, constant: Tensor, h: Tensor, weight: Tensor, bias: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """States with h_0 in front, the activated gates, and W h + b, the last two where they are kept."""
    steps, (particles, rows, hidden) = len(inputs), h.shape
    states = h.new_empty(steps + 1, particles, rows, hidden)
    gates = h.new_empty((steps if keep else 1), particles, rows, 3 * hidden)
    recurrent = torch.empty_like(gates)
    states[0] = h
    for t in range(steps):
        at = t if keep else 0
        torch.addmm(bias, states[t].view(-1, hidden), weight.t(), out=recurrent[at].view(-1, 3 * hidden))
        torch.add(constant, inputs[t], out=gates[at])
        states[t + 1] = gru_cell(gates[at], recurrent[at], states[t])
    return states, gates, recurrent


def _plain_gru(inputs: Tensor, constant: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """States by operations that autograd differentiates as often as it is asked to."""
    states = []
    for u in inputs.unbind():
        r, z, n = (u + constant).chunk(3, -1)
        by_r, by_z, by_n = (h @ weight.t() + bias).chunk(3, -1)
        n = (n + (r + by_r).sigmoid() * by_n).tanh()
        h = n + (z + by_z).sigmoid() * (h - n)
        states.append(h)
    return torch.stack(states)


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, constant: Tensor, h: Tensor, weight: Tensor, bias: Tensor, precision: str
    ) -> Tensor:
        with products_in(precision):
            states, gates, recurrent = _gru_loop(inputs, constant, h, weight, bias)
        ctx.save_for_backward(states, gates, recurrent, weight)
        ctx.precision = precision
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        states, gates, recurrent, weight = ctx.saved_tensors
        steps, particles, rows, hidden = upstream.shape
        r, z, n = gates.chunk(3, -1)
        dn = (1 - z) * (1 - n.square())
        dgates = torch.empty_like(gates)  # ∂(W h + b)/∂h until the loop reaches the step
        torch.mul(dn * recurrent[..., 2 * hidden :], r - r.square(), out=dgates[..., :hidden])
        torch.mul(states[:-1] - n, z - z.square(), out=dgates[..., hidden : 2 * hidden])
        torch.mul(dn, r, out=dgates[..., 2 * hidden :])
        dh = upstream[-1]
        with products_in(ctx.precision):
            for t in reversed(range(steps)):
                dn[t].mul_(dh)
                dgates[t].view(particles, rows, 3, hidden).mul_(dh.unsqueeze(-2))
                dh = dh * z[t] if t == 0 else torch.addcmul(upstream[t - 1], dh, z[t])
                dh = torch.addmm(dh.reshape(-1, hidden), dgates[t].view(-1, 3 * hidden), weight).view_as(dh)
            before = states[:-1].reshape(-1, hidden)
            dweight = dgates.view(-1, 3 * hidden).t() @ before if _is_reached(weight) else None
        dbias = dgates.sum((0, 1, 2))
        dinputs = torch.cat((dgates[..., : 2 * hidden], dn), -1)
        return _over_particles(dinputs), dinputs.sum(0), dh, dweight, dbias, None
