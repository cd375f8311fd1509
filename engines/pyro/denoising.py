"""Multi-head denoising attention over a random measure on Pyro (Henderson & Fehr, ICLR 2023, §2).

A head's query q = W_Q y + b_Q, lifted to u = W_Kᵀ q ∈ R^p, is read as v + noise with v ~ F, noise ~ N(0, r I) and
r = √d, d = p / H the width of a head; its output is W_V E[v | u] + b_V. Of F = Σ_k π_k δ(z_k), drawn in training:

    w_k ∝ exp(q · W_K z_k / r + β_k),    E[v | u] = Σ_k w_k z_k,    β_k = log π_k − |z_k|² / (2 r)

so that β = 0 is plain attention over the z_k. Of F = Σ_i π_i N(μ_i, diag σ_i²), the mean measure of a posterior, with
the gates g = σ² / (r + σ²), elementwise, and β_i = log π_i − |μ_i|² / (2 r):

    w_i ∝ exp(q · W_K (1 − g_i) μ_i / r + u² · g_i / (2 r) + β_i + ½ Σ_j (g_ij μ_ij² / r − log(1 + σ_ij² / r)))
    E[v | u] = Σ_i w_i ((1 − g_i) μ_i + g_i u)

Nothing large cancels in it, and only g meets u at width p. A bias of W_K changes no weight, so there is none.
Shapes: … a batch, n_q queries, n atoms or components, H heads.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.errors import BadInput
from ..measures import Atoms, Components, Keys, Projections, noise_variance
from .precision import check_precision

_FEATURE_FROM = 128
"""Atoms from which a bias with a gradient is one more feature of the keys: with such a mask PyTorch does not fuse."""
_TILE = 1 << 21
"""Elements of an array that gates of width p make of a part of the batch."""


def sampled(atoms: Atoms, projections: Projections, heads: int, relative: bool = False) -> Keys:
    """The training form: attention over one draw of the measure. relative: whether log_weight is β already."""
    root = noise_variance(projections, heads)
    z, beta = _precise(atoms.z, _each(atoms.mask)), _precise(atoms.log_weight, atoms.mask)
    if not relative:
        beta = beta - _SquaredNorm.apply(z) / (2 * root)
    return _keys(z, beta, atoms.mask, projections, heads)


def mean_measure(
    components: Components,
    projections: Projections,
    heads: int,
    rule: Literal["exact", "reference"] = "exact",
    relative: bool = False,
) -> Keys:
    """The evaluation form: attention over the mean of a Dirichlet process, a plug-in and no part of any bound.

    rule: `exact` is E[v | u]; `reference` leaves u² · g / (2 r) out, as the published code does, which disfavours
    broad components. relative: whether log_weight is β already.
    """
    if rule not in ("exact", "reference"):
        raise BadInput(f"the rule of a mean measure is exact or reference, not {rule!r}")
    root = noise_variance(projections, heads)
    mask = components.mask
    loc, variance = _precise(components.loc, _each(mask)), _precise(components.variance, _each(mask))
    beta = _precise(components.log_weight, mask)
    gate = variance / (root + variance)
    scalar, square = gate.shape[-1] == 1, loc.square()
    norm = square.sum(-1)
    gated = gate.squeeze(-1) * norm if scalar else (gate * square).sum(-1)
    spread = (variance / root).log1p().sum(-1) * (loc.shape[-1] if scalar else 1)
    beta = beta + 0.5 * (gated / root - spread)
    if not relative:
        beta = beta - norm / (2 * root)
    keys = _keys(loc * (root / (root + variance)), beta, mask, projections, heads)
    keys = keys._replace(gate=gate.to(keys.key.dtype))
    if rule == "exact":
        keys = keys._replace(square=(gate / (2 * root)).to(keys.key.dtype))
    if not scalar:
        return keys
    key, value = (weight.unflatten(0, (heads, -1)) for weight in (projections.key, projections.value))
    return keys._replace(lifted=key @ torch.cat((key, value), -2).mT)


def attend(
    y: Tensor, keys: Keys, projections: Projections, visible: Tensor | None = None, precision: str = "float32"
) -> Tensor:
    """The heads' outputs side by side: y (…, n_q, p_q) to (…, n_q, p).

    visible: (n_q, n), False where a query does not see an atom; one that it sees must be there, the prior's say.
    precision: of the products with gates of width p alone. Multiply-adds of each query and component: 2 p, as plain
    attention; with gates of width p 2 p + 2 H p.
    """
    heads = keys.key.shape[-3]
    query = F.linear(y, projections.query, projections.query_bias).unflatten(-1, (heads, -1)).transpose(-3, -2)
    if keys.gate is None or keys.gate.shape[-1] == 1:
        found = _fused(query, keys, visible)
    else:
        found = _general(query, keys, projections, visible, check_precision(precision)).transpose(-3, -2)
    return found.flatten(-2)


def weights(y: Tensor, keys: Keys, projections: Projections) -> Tensor:
    """w of `attend`, (…, H, n_q, n), written out: to be looked at."""
    heads = keys.key.shape[-3]
    query = F.linear(y, projections.query, projections.query_bias).unflatten(-1, (heads, -1)).transpose(-3, -2)
    logits = query @ keys.key.mT * query.shape[-1] ** -0.5 + _mask(keys.bias, None)
    if keys.square is not None:
        lifted = query @ projections.key.unflatten(0, (heads, -1))
        square = keys.square.expand(*keys.square.shape[:-1], lifted.shape[-1])
        logits = logits + lifted.square() @ square.unsqueeze(-3).mT
    return logits.softmax(-1)


def causal(y: Tensor, samples: int = 1) -> Tensor:
    """`visible` of self-attention from left to right: query t of y (…, T, p_q) sees the prior and places 0 to t.

    Keys are the prior's and those of the T places, all of them so many times in turn as there are samples of each.
    """
    steps = y.shape[-2]
    return torch.ones(steps, steps + 1, dtype=torch.bool, device=y.device).tril(1).tile(1, samples)


class _SquaredNorm(torch.autograd.Function):
    """|z|² of the last axis, in one pass each way."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return torch.linalg.vector_norm(z, dim=-1).square()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return z * (2 * gradients[0]).unsqueeze(-1)


def _each(mask: Tensor | None) -> Tensor | None:
    """(…, n, 1), for vectors."""
    return None if mask is None else mask[..., None]


def _precise(x: Tensor, mask: Tensor | None) -> Tensor:
    """At least float32, with 0 where the mask is False."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x if mask is None else torch.where(mask, x, 0)


def _keys(loc: Tensor, beta: Tensor, mask: Tensor | None, projections: Projections, heads: int) -> Keys:
    """Rounded to the type of the projections at the end, the bias with its largest subtracted."""
    dtype = projections.key.dtype
    lowest = _lowest(dtype)
    if mask is not None:
        beta = torch.where(mask, beta, -torch.inf)
    largest = beta.detach().amax(-1, keepdim=True).clamp(min=lowest)
    bias = (beta - largest).clamp(min=lowest).to(dtype)
    loc = loc.to(dtype)
    key = F.linear(loc, projections.key).unflatten(-1, (heads, -1)).transpose(-3, -2)
    value = F.linear(loc, projections.value, projections.value_bias).unflatten(-1, (heads, -1)).transpose(-3, -2)
    return Keys(key, value, bias)


def _lowest(dtype: torch.dtype) -> float:
    """A logit that leaves no weight, and that a factor of √d does not carry out of range."""
    return torch.finfo(dtype).min / 128


def _fused(query: Tensor, keys: Keys, visible: Tensor | None) -> Tensor:
    """One call for atoms and for scalar gates, which are one more feature of queries, keys and values: (…, n_q, H, d)."""
    *_, length, width = keys.key.shape
    root = width**0.5
    columns: list[tuple[Tensor | float, Tensor, Tensor | float]] = []  # of queries, keys and values
    mask, through = _mask(keys.bias, visible), None
    if keys.gate is not None and keys.lifted is not None:
        norms, through = _by_head(query, keys.lifted).split(width, -1)
        square = 0.0 if keys.square is None else 0.5 * (norms * query).sum(-1, keepdim=True)
        columns.append((square, keys.gate.unsqueeze(-3), keys.gate.unsqueeze(-3)))
    if keys.bias.requires_grad and torch.is_grad_enabled() and length >= _FEATURE_FROM:
        columns.append((1.0, root * keys.bias[..., None, :, None], 0.0))
        mask = None if visible is None else _mask(torch.zeros_like(keys.bias[..., :1]), visible)
    wide = [_widened(x, [each[i] for each in columns]) for i, x in enumerate((query, keys.key, keys.value))]
    # Cut as PyTorch lays it out, since the gradient then needs no copy.
    found = _scaled_dot_product(wide[0], wide[1], wide[2], mask, 1 / root).transpose(-3, -2)
    if not columns:
        return found
    mean = found[..., :width]
    return mean if through is None else torch.addcmul(mean, found[..., width, None], through.transpose(-3, -2))


def _by_head(x: Tensor, weight: Tensor) -> Tensor:
    """(…, H, n_q, in) and (H, in, out) to (…, H, n_q, out): a product a head, without a copy of queries or weights."""
    rows = x.movedim(-3, 0)
    found = torch.bmm(rows.flatten(1, -2), weight)
    return found.unflatten(1, rows.shape[1:-1]).movedim(0, -3)


def _mask(bias: Tensor, visible: Tensor | None) -> Tensor:
    """(…, 1, 1 or n_q, n), to be added to the logits."""
    bias = bias[..., None, None, :]
    return bias if visible is None else torch.where(visible, bias, -torch.inf)


def _widened(x: Tensor, columns: list[Tensor | float]) -> Tensor:
    """x with columns to its right, and on a GPU zeros up to a multiple of 8, as its kernels ask."""
    if not columns:
        return x
    spare = 0 if x.is_cpu else -(x.shape[-1] + len(columns)) % 8
    given = [c if isinstance(c, Tensor) else x.new_full((), c) for c in [*columns, *[0.0] * spare]]
    return torch.cat([x, *(c.expand(*x.shape[:-1], 1) for c in given)], -1)


def _scaled_dot_product(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """PyTorch's, which fuses only with one batch axis."""
    batch = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3])
    query, key, value = (_flat(x, batch) for x in (query, key, value))
    mask = mask if mask is None or mask.dim() == 2 else _flat(mask, batch)
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return found.reshape(*batch, *found.shape[1:])


def _flat(x: Tensor, batch: torch.Size) -> Tensor:
    """The axes of the batch as one, of x (…, H, n, d)."""
    return x.expand(*batch, *x.shape[-3:]).reshape(-1, *x.shape[-3:])


def _general(query: Tensor, keys: Keys, projections: Projections, visible: Tensor | None, precision: str) -> Tensor:
    """Gates of width p, so many of the batch at a time that what one product leaves is near when the next reads it."""
    assert keys.gate is not None
    batch = torch.broadcast_shapes(query.shape[:-3], keys.key.shape[:-3])
    heads, length, _ = query.shape[-3:]
    dtype = torch.bfloat16 if precision == "bfloat16" and query.dtype == torch.float32 else query.dtype
    lift, through = (weight.unflatten(0, (heads, -1)).to(dtype) for weight in (projections.key, projections.value))
    rows = max(1, _TILE // (heads * length * max(keys.gate.shape[-2:])))
    gates = (keys.gate, torch.zeros_like(keys.gate[..., :1, :1]) if keys.square is None else keys.square)
    parts = [query, keys.key, keys.value, _mask(keys.bias, visible), *(x.unsqueeze(-3).to(dtype) for x in gates)]
    tiles = zip(*(_flat(x, batch).split(rows) for x in parts), strict=True)
    found = torch.cat([_gated(*tile, lift=lift, through=through, squared=keys.square is not None) for tile in tiles])
    return found.view(*batch, *found.shape[1:])


def _gated(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    gate: Tensor,
    square: Tensor,
    *,
    lift: Tensor,
    through: Tensor,
    squared: bool,
) -> Tensor:
    """What queries (b, H, n_q, d) read. Products with gates are of all heads at once, since heads share them."""
    lifted = _by_head(query.to(lift.dtype), lift)
    logits = torch.add(bias, query @ key.mT, alpha=query.shape[-1] ** -0.5)
    if squared:
        logits = logits + (lifted.square().flatten(1, 2) @ square.squeeze(1).mT).view_as(logits)
    weights = logits.softmax(-1)
    opened = (weights.to(gate.dtype).flatten(1, 2) @ gate.squeeze(1)).view(lifted.shape)
    return weights @ value + _by_head(opened * lifted, through.mT)
