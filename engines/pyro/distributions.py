"""The distribution of a sentence given the states of its decoder.

    log p(x | h) = Σ_{t ≤ length} log softmax(W h_t)[x_t]

Projection, log-softmax and gather are one operation that walks over tiles of rows, so that its memory does
not grow with batch × time × vocabulary. Where gradients are wanted, the same exponentials give those too, for
an upstream gradient of one; the backward pass scales them when the upstream gradient is the same for all
counted rows (as under the ELBO), and otherwise forms the weight's gradient again, tile by tile: exact either
way. States of several particles, which bounds weigh, leave the weight's gradient to the backward pass at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from ...models.errors import BadInput
from .precision import _is_reached, _twice, products_in

PAD, BOS, EOS = 0, 1, 2
TILE = 2**22  # logits in a tile: 16 MiB of float32; smaller ones read and write the gradient of W more often
_SAFE = 1e20  # a sum of exponentials within 1/_SAFE … _SAFE has lost nothing to overflow or underflow


def token_log_prob(
    states: Tensor, weight: Tensor, targets: Tensor, lengths: Tensor, *, precision: str = "float32"
) -> Tensor:
    """Σ_{t < lengths} log softmax(W h_t)[x_t].

    states (…, T, H), weight (V, H), targets (…, T) and lengths (…) to (…).
    Targets and lengths broadcast against the states' batch. Gradients are exact, for states and weight.
    """
    batch, steps = states.shape[:-2], states.shape[-2]
    counted = (torch.arange(steps, device=states.device) < lengths.unsqueeze(-1)).expand(*batch, steps)
    rows = counted.reshape(-1).nonzero().squeeze(-1)
    targets = targets.expand(*batch, steps).reshape(-1).index_select(0, rows)
    picked = states.reshape(-1, states.shape[-1]).index_select(0, rows)
    if _twice():
        per_token = (picked @ weight.t()).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    elif torch.is_grad_enabled() and (picked.requires_grad or weight.requires_grad):
        per_token = _TokenLogProb.apply(picked, weight, targets, precision, len(batch) > 1)
    else:
        with products_in(precision):
            per_token = _log_prob(picked, weight, targets)
    scattered = per_token.new_zeros(counted.numel()).index_copy(0, rows, per_token)
    return scattered.view(*batch, steps).sum(-1)


class _Tiles:
    """Room for one tile, kept from call to call: whoever takes it owns it until it is given back."""

    def __init__(self) -> None:
        self.free: dict[torch.dtype, Tensor] = {}

    def take(self, like: Tensor, rows: int, columns: int) -> Tensor:
        if like.device.type != "cpu":  # CUDA's allocator keeps freed blocks itself
            return like.new_empty(rows, columns)
        room = self.free.pop(like.dtype, None)
        if room is None or room.numel() < rows * columns:
            room = like.new_empty(rows * columns)
        return room[: rows * columns].view(rows, columns)

    def give_back(self, tile: Tensor) -> None:
        if tile.device.type == "cpu":
            self.free[tile.dtype] = tile.new_empty(0).set_(tile.untyped_storage())


_tiles = _Tiles()


class _Part(NamedTuple):
    """One tile once its exponentials are there: rows `part`, exp(W h − shift) and its sums."""

    part: slice
    exponentials: Tensor
    total: Tensor


def _tile_rows(rows: int, vocabulary: int) -> int:
    """Rows of a tile, so that all tiles are about equal."""
    tiles = max(1, math.ceil(rows * vocabulary / TILE))
    return max(1, math.ceil(rows / tiles))


def _exponentials(states: Tensor, weight: Tensor, tile: Tensor) -> tuple[Tensor | float, Tensor]:
    """Fills `tile` with exp(W h − shift); the shift per row, and the sums per row (R,).

    The shift is 0 unless that loses precision: one pass less over the tile.
    """
    logits = torch.mm(states, weight.t(), out=tile)
    if logits.device.type == "cpu":
        total = logits.exp_().sum(-1)
        if total.max() < _SAFE and total.min() > 1 / _SAFE:
            return 0.0, total
        torch.mm(states, weight.t(), out=tile)
    shift = logits.amax(-1)
    return shift, logits.sub_(shift.unsqueeze(-1)).exp_().sum(-1)


def _walk(states: Tensor, weight: Tensor, targets: Tensor, tile: Tensor, result: Tensor) -> Iterator[_Part]:
    """Fills `result` (N,) with log softmax(W h)[x], tile by tile; each holds until the next is asked for."""
    for first in range(0, len(states), len(tile)):
        part = slice(first, first + len(tile))
        h = states[part]
        exponentials = tile[: len(h)]
        shift, total = _exponentials(h, weight, exponentials)
        result[part] = (h * weight.index_select(0, targets[part])).sum(-1) - shift - total.log()
        yield _Part(part, exponentials, total)


def _log_prob(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Where no gradient is wanted."""
    tile = _tiles.take(states, _tile_rows(len(states), len(weight)), len(weight))
    result = states.new_empty(len(states))
    for _ in _walk(states, weight, targets, tile, result):
        pass
    _tiles.give_back(tile)
    return result


def _add_softmax(dweight: Tensor, at: _Part, states: Tensor, upstream: Tensor | float, before: Any) -> None:
    """dweight ← before · dweight − Σ_rows upstream · softmax ⊗ h, over the rows of one tile."""
    scale = (upstream[at.part] if isinstance(upstream, Tensor) else upstream) / at.total
    dweight.addmm_(at.exponentials.t(), states[at.part] * scale.unsqueeze(-1), beta=before, alpha=-1)


class _TokenLogProb(torch.autograd.Function):
    """(N, H), (V, H), (N,) to log-probabilities (N,).

    The last tile stays until the backward pass, so that the scale of the others' gradient costs no pass of
    its own.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, precision: str, weighed: bool) -> Tensor:
        ctx.precision = precision
        ctx.dstates = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(states, weight, targets)
        tile = _tiles.take(states, _tile_rows(len(states), len(weight)), len(weight))
        later = weighed and len(states) > len(tile)
        ctx.dweight = torch.empty_like(weight) if ctx.needs_input_grad[1] and not later else None
        result = states.new_empty(len(states))
        ctx.last = None
        with products_in(precision):
            for at in _walk(states, weight, targets, tile, result):
                if ctx.dstates is not None:
                    mean = torch.mm(at.exponentials, weight, out=ctx.dstates[at.part]).div_(at.total.unsqueeze(-1))
                    torch.sub(weight.index_select(0, targets[at.part]), mean, out=mean)
                if ctx.dweight is not None and at.part.stop < len(states):
                    _add_softmax(ctx.dweight, at, states, 1.0, float(at.part.start > 0))
                ctx.last = at
        if later:
            ctx.last = None
            _tiles.give_back(tile)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        dstates = ctx.dstates * upstream.unsqueeze(-1) if ctx.needs_input_grad[0] else None
        dweight = None
        if ctx.needs_input_grad[1] and _is_reached(ctx.saved_tensors[1]):
            with products_in(ctx.precision):
                dweight = _weight_gradient(ctx, upstream)
        return dstates, dweight, None, None, None


def _weight_gradient(ctx: Any, upstream: Tensor) -> Tensor:
    """∂/∂W for any upstream gradient (N,): by scaling what the forward pass left, or else from the start."""
    states, weight, targets = ctx.saved_tensors
    dweight, ctx.dweight = ctx.dweight, None
    last, ctx.last = ctx.last, None
    one_tile = last is not None and last.part.start == 0
    if dweight is not None and last is not None and (one_tile or bool((upstream == upstream[0]).all())):
        _add_softmax(dweight, last, states, upstream, 0.0 if one_tile else upstream[0].item())
        _tiles.give_back(last.exponentials)
    else:
        dweight = torch.zeros_like(weight)
        tile = _tiles.take(states, _tile_rows(len(states), len(weight)), len(weight))
        for at in _walk(states, weight, targets, tile, torch.empty_like(upstream)):
            _add_softmax(dweight, at, states, upstream, 1.0)
        _tiles.give_back(tile)
    return dweight.index_add_(0, targets, states * upstream.unsqueeze(-1))


class TokenSequence(TorchDistribution):
    """A sentence given the states of its decoder: event shape (T,), batch shape that of the states.

    Args:
        states: (…, T, H), after dropout. weight: (V, H), the vocabulary projection. lengths: predicted tokens
        of each row, eos included; broadcastable to the batch shape. The rest is padding. decoder, z: what
        `sample` decodes from; z (…, Z), or a measure (…, K, p + 1), or None. precision: of the vocabulary products.

    Ids are 0 pad, 1 bos, 2 eos. Tokens are not checked against the vocabulary; shapes are.
    """

    # torch declares both as properties and its own distributions set them so
    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.independent(constraints.nonnegative_integer, 1)  # pyright: ignore[reportAssignmentType]
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
                f"states of shape {tuple(states.shape)} do not fit a projection of shape "
                f"{tuple(weight.shape)}: (…, T, H) and (V, H) do"
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
        z = None
        if self.z is not None:
            event = self.z.shape[self.states.dim() - 2 :]
            z = self.z.expand(*shape, *event).reshape(rows, *event)
        return self._decode(self.decoder.start(z, rows, self.event_shape[0]), rows).view(*shape, -1)

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
