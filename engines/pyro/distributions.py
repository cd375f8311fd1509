"""The distribution of a sentence given the states of its decoder.

    log p(x | h) = Σ_{t ≤ length} log softmax(W h_t)[x_t]

Projection, log-softmax and gather are one operation that walks over tiles of rows, so that its memory does not grow
with batch × time × vocabulary. Where gradients are wanted, the same exponentials give those too, for an upstream
gradient of one; the backward pass scales them when the upstream gradient is the same for all counted rows (as under
the ELBO), and otherwise forms the weight's gradient again, tile by tile.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from ...models.errors import BadInput
from .precision import products_in

PAD, BOS, EOS = 0, 1, 2
TILE = 2**22  # logits in a tile: 16 MiB of float32; smaller ones read and write the gradient of W more often
SAFE = 1e20  # a sum of exponentials within 1/SAFE … SAFE has lost nothing to overflow or underflow


def token_log_prob(
    states: Tensor, weight: Tensor, targets: Tensor, lengths: Tensor, *, precision: str = "float32"
) -> Tensor:
    """Σ_{t < lengths} log softmax(W h_t)[x_t]: states (…, T, H), weight (V, H), targets (…, T), lengths (…) to (…).

    Targets and lengths broadcast against the states' batch. Gradients are exact, for states and weight.
    """
    batch, steps = states.shape[:-2], states.shape[-2]
    counted = (torch.arange(steps, device=states.device) < lengths.unsqueeze(-1)).expand(*batch, steps)
    rows = counted.reshape(-1).nonzero().squeeze(-1)
    targets = targets.expand(*batch, steps).reshape(-1).index_select(0, rows)
    picked = states.reshape(-1, states.shape[-1]).index_select(0, rows)
    if torch.is_grad_enabled() and (picked.requires_grad or weight.requires_grad):
        per_token = _TokenLogProb.apply(picked, weight, targets, precision)
    else:
        with products_in(precision):
            per_token = _walk(picked, weight, targets)
    scattered = per_token.new_zeros(counted.numel()).index_copy(0, rows, per_token)
    return scattered.view(*batch, steps).sum(-1)


class _Tiles(threading.local):
    """One tile of logits per thread, kept from call to call; nothing outside a call ever refers to it."""

    def __init__(self) -> None:
        self.kept: dict[torch.dtype, Tensor] = {}

    def take(self, like: Tensor, rows: int, columns: int) -> Tensor:
        if like.device.type != "cpu":  # CUDA's allocator keeps freed blocks itself
            return like.new_empty(rows, columns)
        kept = self.kept.get(like.dtype)
        if kept is None or kept.numel() < rows * columns:
            kept = self.kept[like.dtype] = like.new_empty(rows * columns)
        return kept[: rows * columns].view(rows, columns)


_tiles = _Tiles()


def _tile_rows(rows: int, vocabulary: int) -> int:
    """Rows of a tile, so that all tiles are about equal."""
    tiles = max(1, math.ceil(rows * vocabulary / TILE))
    return max(1, math.ceil(rows / tiles))


def _exponentials(states: Tensor, weight: Tensor, tile: Tensor) -> tuple[Tensor, Tensor | float, Tensor]:
    """exp(W h − shift) in `tile`, the shift per row, and the sums per row (R,).

    The shift is 0 unless that loses precision: one pass less over the tile.
    """
    logits = torch.mm(states, weight.t(), out=tile)
    if logits.device.type == "cpu":
        total = logits.exp_().sum(-1)
        if total.numel() == 0 or (total.max() < SAFE and total.min() > 1 / SAFE):
            return tile, 0.0, total
        logits = torch.mm(states, weight.t(), out=tile)
    shift = logits.amax(-1)
    total = logits.sub_(shift.unsqueeze(-1)).exp_().sum(-1)
    return tile, shift, total


def _walk(
    states: Tensor,
    weight: Tensor,
    targets: Tensor,
    upstream: Tensor | None = None,
    dstates: Tensor | None = None,
    dweight: Tensor | None = None,
) -> Tensor:
    """log softmax(W h)[x] per row (N,), tile by tile; fills the gradients that are given.

    `dweight` is for the given upstream gradient (N,), or one; `dstates` is for one.
    """
    result = states.new_empty(len(states))
    size = _tile_rows(len(states), len(weight))
    buffer = _tiles.take(states, min(size, len(states)), len(weight))
    for first in range(0, len(states), size):
        part = slice(first, first + size)
        h = states[part]
        own = weight.index_select(0, targets[part])
        exponentials, shift, total = _exponentials(h, weight, buffer[: len(h)])
        result[part] = (h * own).sum(-1) - shift - total.log()
        if dstates is not None:
            torch.mm(exponentials, weight, out=dstates[part]).div_(-total.unsqueeze(-1)).add_(own)
        if dweight is not None:
            scaled = h / total.unsqueeze(-1) if upstream is None else h * (upstream[part] / total).unsqueeze(-1)
            dweight.addmm_(exponentials.t(), scaled, beta=float(first > 0), alpha=-1)
    if dweight is not None:
        dweight.index_add_(0, targets, states if upstream is None else states * upstream.unsqueeze(-1))
    return result


class _TokenLogProb(torch.autograd.Function):
    """(N, H), (V, H), (N,) to log-probabilities (N,)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, precision: str) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.dstates = torch.empty_like(states) if wanted[0] else None
        ctx.dweight = _gradient_like(weight, len(states)) if wanted[1] else None
        ctx.save_for_backward(states, weight, targets)
        ctx.precision = precision
        with products_in(precision):
            return _walk(states, weight, targets, None, ctx.dstates, ctx.dweight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        states, weight, targets = ctx.saved_tensors
        dstates = dweight = None
        if ctx.needs_input_grad[0]:
            dstates = ctx.dstates * upstream.unsqueeze(-1)
        if ctx.needs_input_grad[1]:
            dweight, ctx.dweight = ctx.dweight, None
            if dweight is not None and len(upstream) and bool((upstream == upstream[0]).all()):
                dweight = dweight.mul_(upstream[0])
            else:
                dweight = _gradient_like(weight, len(states))
                with products_in(ctx.precision):
                    _walk(states, weight, targets, upstream, None, dweight)
        return dstates, dweight, None, None


def _gradient_like(weight: Tensor, rows: int) -> Tensor:
    """Room for the gradient; the first tile overwrites it, if there is one."""
    return torch.empty_like(weight) if rows else torch.zeros_like(weight)


class TokenSequence(TorchDistribution):
    """A sentence given the states of its decoder: event shape (T,), batch shape that of the states.

    Args:
        states: (…, T, H), after dropout.
        weight: (V, H), the vocabulary projection.
        lengths: predicted tokens of each row, eos included; broadcastable to the batch shape. The rest is padding.
        decoder, z: what `sample` decodes from; z (…, Z) or None.
        precision: of the vocabulary products.

    Ids are 0 pad, 1 bos, 2 eos. Tokens are not checked against the vocabulary; shapes are.
    """

    arg_constraints = {}  # noqa: RUF012 - as torch declares it
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(
        self,
        states: Tensor,
        weight: Tensor,
        lengths: Tensor,
        *,
        decoder: Any = None,
        z: Tensor | None = None,
        precision: str = "float32",
        batch_shape: torch.Size | None = None,
    ) -> None:
        if states.dim() < 2 or states.shape[-1] != weight.shape[-1]:
            raise BadInput(
                f"states of shape {tuple(states.shape)} do not fit a projection of shape {tuple(weight.shape)}: "
                "(…, T, H) and (V, H) do"
            )
        self.states, self.weight, self.lengths = states, weight, lengths
        self.decoder, self.z, self.precision = decoder, z, precision
        super().__init__(batch_shape or states.shape[:-2], states.shape[-2:-1], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenSequence:
        """The same rows for each new index: their log-probability is computed once."""
        return TokenSequence(
            self.states,
            self.weight,
            self.lengths,
            decoder=self.decoder,
            z=self.z,
            precision=self.precision,
            batch_shape=torch.Size(batch_shape),
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, T) to (…), in nats per sentence."""
        if value.shape[-1:] != self.event_shape:
            raise BadInput(f"sentences of shape {tuple(value.shape)} do not end in T = {self.event_shape[0]} tokens")
        try:
            rows = torch.broadcast_shapes(self.states.shape[:-2], value.shape[:-1])
            batch = torch.broadcast_shapes(self.batch_shape, rows)
        except RuntimeError:
            raise BadInput(
                f"sentences of shape {tuple(value.shape)} do not fit a batch of shape {tuple(self.batch_shape)}"
            ) from None
        states = self.states.expand(*rows, *self.states.shape[-2:])
        scored = token_log_prob(states, self.weight, value, self.lengths, precision=self.precision)
        return scored.expand(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Ancestral samples, sample_shape + batch_shape + (T,): ids, pad after eos."""
        if self.decoder is None:
            raise BadInput("this TokenSequence was built without its decoder: it scores sentences, it cannot draw them")
        shape = torch.Size(sample_shape) + self.batch_shape
        rows = shape.numel()
        z = None if self.z is None else self.z.expand(*shape, self.z.shape[-1]).reshape(rows, -1)
        return self._decode(self.decoder.start(z, rows), rows).view(*shape, -1)

    def _decode(self, state: Any, rows: int) -> Tensor:
        ids = torch.full((rows, self.event_shape[0]), PAD, device=self.weight.device)
        token = torch.full((rows,), BOS, device=self.weight.device)
        alive = torch.ones_like(token, dtype=torch.bool)
        for t in range(self.event_shape[0]):
            state, logits = self.decoder.step(state, token)
            token = torch.multinomial(logits.softmax(-1), 1).squeeze(-1).where(alive, PAD)
            ids[:, t] = token
            alive &= token != EOS
            if not alive.any():
                break
        return ids
