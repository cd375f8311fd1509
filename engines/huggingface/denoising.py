"""Denoising attention in place of the attention of a pretrained model (Fehr & Henderson, COLM 2024).

A vector x that a layer attends to becomes a component N(μ, σ²) with log α = |x|² / (2 r) + b (`engines.identity`), beside
which the prior's component N(μ⁰, σ⁰²) is always visible; r = √d, d the width of a head. All σ are alike but the prior's, so
that with the gates g = σ² / (r + σ²) and g⁰, elementwise, u = W_Kᵀ q and Δ = g⁰ − g a head needs no lift to width p:

    log w of x        q · W_K (1 − g) μ / r + β(x)              β = Σ_j (x² − (1 − g) μ²)_j / (2 r)
    log w of prior    q · W_K (1 − g⁰) μ⁰ / r + β⁰ + qᵀ W_K Δ W_Kᵀ q / (2 r)
    output            Σ_i w_i W_V (1 − g_i) μ_i + b_V + W_V g W_Kᵀ q + w⁰ W_V Δ W_Kᵀ q

This is `engines.pyro.denoising.mean_measure`, in which log w is relative to what all x share: nothing large cancels in it,
and β is 0 where nothing is changed. A bias of W_K would favour or disfavour the prior by its accident: it changes no
weight among the x, so there is none. (1 − g) and μ's share of x are multiplied into W_K and W_V.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import cache
from numbers import Real
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache, EncoderDecoderCache, PretrainedConfig, PreTrainedModel

from ...models.errors import BadInput
from ..identity import EmpiricalPrior, identity
from .attentions import KINDS, attentions

Model = TypeVar("Model", bound=PreTrainedModel)
Rule = Literal["exact", "reference"]
Tau = float | Mapping[str, float]


def regularised(
    model: Model,
    priors: Mapping[str, EmpiricalPrior],
    tau_alpha: Tau = 10.0,
    tau_sigma: Tau = 0.0,
    tau_mu: Tau = 1.0,
    rule: Rule = "exact",
) -> Model:
    """A copy of the model with denoising attention, for use and not for training; the model stays as it is.

    A tau is a number or one for each kind, {"encoder": …, "cross": …, "decoder": …}; a kind left out keeps the default,
    with which the prior's weight is of the order of e^(−10 sd), sd the standard deviation of log α. `identity` says
    what they are, `mean_measure` what rule is; by `exact` the prior gains with the queries' norm as well, so that of
    very large ones `reference` is nearer to the model. With the attention implementation "eager" the weights are to be
    had, the prior's first.
    """
    if rule not in ("exact", "reference"):
        raise BadInput(f"the rule of a mean measure is exact or reference, not {rule!r}")
    found = attentions(model)
    _check_implementation(model.config)
    taus = {"tau_alpha": tau_alpha, "tau_sigma": tau_sigma, "tau_mu": tau_mu}
    for name, tau in taus.items():
        if isinstance(tau, Mapping) and (unknown := set(tau) - set(KINDS)):
            raise BadInput(f"{name} is of {', '.join(KINDS)}, not of {sorted(unknown)[0]!r}")
        for each in tau.values() if isinstance(tau, Mapping) else (tau,):
            if not (isinstance(each, Real) and math.isfinite(each)):
                raise BadInput(f"{name} is a finite number, or one for each kind of attention, not {each!r}")
    for layers in found.values():
        for name, layer in layers.items():
            _check_prior(name, layer, priors)
    made = copy.deepcopy(model).eval().requires_grad_(False)
    for kind, layers in attentions(made).items():
        chosen = {name: tau.get(kind) if isinstance(tau, Mapping) else tau for name, tau in taus.items()}
        chosen = {name: tau for name, tau in chosen.items() if tau is not None}
        for name, layer in layers.items():
            _convert(layer, kind, priors[name], chosen, rule)
    return made


def _check_implementation(config: PretrainedConfig) -> None:
    if config._attn_implementation not in ("eager", "sdpa"):
        raise BadInput(
            f"denoising attention runs in the implementations eager and sdpa, not {config._attn_implementation}: "
            "model.set_attn_implementation('sdpa')"
        )


def _check_prior(name: str, layer: Any, priors: Mapping[str, EmpiricalPrior]) -> None:
    if name not in priors:
        raise BadInput(f"there is no prior of {name}: empirical_priors gives those of all layers")
    given, width = len(priors[name].loc), layer.k_proj.in_features
    if given != width:
        raise BadInput(f"the prior of {name} is of width {given}, the layer of {width}: it is of another model")
    finite = all(np.isfinite(each).all() for each in priors[name])
    if not finite or np.min(priors[name].variance) < 0 or priors[name].log_alpha_scale < 0:
        raise BadInput(
            f"the prior of {name} has a variance below 0 or a number that is not finite: empirical_priors gives none"
        )


def _convert(layer: Any, kind: str, prior: EmpiricalPrior, taus: Mapping[str, float], rule: Rule) -> None:
    """In place. All in float64 until the layer's own type at the end."""
    heads, width, dtype, device = layer.num_heads, layer.head_dim, layer.k_proj.weight.dtype, layer.k_proj.weight.device
    root = width**0.5
    posterior = identity(prior, width, **taus)
    scale, shift = (torch.as_tensor(x) for x in (posterior.loc.diagonal().copy(), posterior.loc_bias))
    variance = torch.as_tensor(posterior.log_variance_bias).exp()
    loc0, variance0 = torch.as_tensor(prior.loc), torch.as_tensor(prior.variance)
    gate, gate0 = variance / (root + variance), variance0 / (root + variance0)
    key, value = (each.weight.detach().to("cpu", torch.float64) for each in (layer.k_proj, layer.v_proj))
    bias = layer.v_proj.bias
    bias = value.new_zeros(len(value)) if bias is None else bias.detach().to("cpu", torch.float64)

    shared = float(posterior.bias) - 0.5 * ((1 - gate) * shift**2 / root + (variance / root).log1p()).sum()
    beta0 = float(prior.log_alpha) - 0.5 * ((1 - gate0) * loc0**2 / root + (variance0 / root).log1p()).sum() - shared
    kept, columns = (1 - gate0) * loc0, _columns(width)
    prior_key = torch.cat([(key @ kept).view(heads, 1, width), _halves((root * beta0).expand(heads, 1), dtype)], -1)
    prior_value = (value @ kept + bias).view(heads, 1, width)
    one = torch.ones(heads, 1, 1)
    wide, values = key.view(heads, width, -1), value.view(heads, width, -1).mT
    tilt = 0.5 * wide * (gate0 - gate) @ wide.mT * (rule == "exact")
    lifts = torch.cat([tilt, wide * (gate0 - gate) @ values, wide * gate @ values], -1)

    layer.k_proj = _linear(key * ((1 - gate) * scale), key @ ((1 - gate) * shift), layer.k_proj)
    layer.v_proj = _linear(value * ((1 - gate) * scale), value @ ((1 - gate) * shift) + bias, layer.v_proj)
    buffers = {
        "prior_key": F.pad(torch.cat([prior_key, one, one], -1), (0, columns - 4)),
        "prior_value": F.pad(torch.cat([prior_value, one], -1), (0, columns - 1)),
        "square": torch.as_tensor(posterior.square) - (1 - gate) * scale**2 / (2 * root),
        "linear": -(1 - gate) * scale * shift / root,
        "lifts": lifts,
    }
    precise = torch.promote_types(dtype, torch.float32)
    for name, each in buffers.items():
        layer.register_buffer(name, each.to(device, dtype if name.startswith("prior") else precise))
    layer.causal = kind == "decoder"
    layer.__class__ = _denoising(type(layer))


def _linear(weight: Tensor, bias: Tensor, like: nn.Linear) -> nn.Linear:
    made = nn.Linear(like.in_features, like.out_features, device=like.weight.device, dtype=like.weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        made.bias.copy_(bias)
    return made.requires_grad_(False)


def _columns(width: int) -> int:
    """Of heads beside their width: two for β, two for the prior's tilt, and as many as make the whole divisible by 8."""
    return 4 + -(width + 4) % 8


def _halves(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (…) as two numbers (…, 2) of a type that sum to it, which keeps in half precision what one would round off."""
    bound = torch.finfo(dtype).max / 8
    x = x.clamp(-bound, bound)
    high = x.to(dtype)
    return torch.stack([high, (x - high).to(dtype)], -1)


class DenoisingAttention(nn.Module):
    """Stands before the layer's own class, whose projections and caches it uses.

    prior_key, prior_value (H, 1, d + columns): the prior's component. square, linear (p,): β of x, of their powers.
    lifts (H, d, 3 d): ½ W_K Δ W_Kᵀ, W_K Δ W_Vᵀ and W_K g W_Vᵀ.
    """

    config: PretrainedConfig
    num_heads: int
    head_dim: int
    layer_idx: int
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    out_proj: nn.Linear
    prior_key: Tensor
    prior_value: Tensor
    square: Tensor
    linear: Tensor
    lifts: Tensor
    causal: bool

    def forward(
        self,
        hidden_states: Tensor,
        key_value_states: Tensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, n_q, p), and the weights (B, H, n_q, n + 1) if the implementation is eager, the prior's first."""
        cross = key_value_states is not None
        keys, values = self._attended(key_value_states if cross else hidden_states, past_key_values, cross)
        heads, weights = self._attend(self._by_head(self.q_proj(hidden_states)), keys, values, attention_mask)
        return self.out_proj(heads.transpose(1, 2).flatten(2)), weights

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _attended(self, x: Tensor, past: Cache | None, cross: bool) -> tuple[Tensor, Tensor]:
        """Keys (B, H, n, d + 2), the last two √d β, and values (B, H, n, d), with those of the cache."""
        kept = past
        if isinstance(past, EncoderDecoderCache):
            kept = past.cross_attention_cache if cross else past.self_attention_cache
            if cross and past.is_updated.get(self.layer_idx):
                layer: Any = kept.layers[self.layer_idx]
                return layer.keys, layer.values
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        beta = precise.square() @ self.square.to(precise) + precise @ self.linear.to(precise)
        columns = _halves(self.head_dim**0.5 * beta, x.dtype)[:, None].expand(-1, self.num_heads, -1, -1)
        keys, values = torch.cat([self._by_head(self.k_proj(x)), columns], -1), self._by_head(self.v_proj(x))
        if kept is not None:
            keys, values = kept.update(keys, values, self.layer_idx)
            if cross and isinstance(past, EncoderDecoderCache):
                past.is_updated[self.layer_idx] = True
        return keys, values

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Heads' outputs (B, H, n_q, d) and weights. β, the tilt and the prior's weight are columns beside the d."""
        width, columns, dtype, batch = self.head_dim, _columns(self.head_dim), query.dtype, len(query)
        precise = query.to(torch.promote_types(dtype, torch.float32))
        tilt, swing, gated = (precise @ self.lifts.to(precise)).split(width, -1)
        tilt = _halves((tilt * precise).sum(-1), dtype)
        mask = self._visible(mask, query, keys)
        query = F.pad(torch.cat([query, torch.ones_like(tilt), tilt], -1), (0, columns - 4))
        keys = torch.cat([self.prior_key.expand(batch, -1, -1, -1), F.pad(keys, (0, columns - 2))], -2)
        values = torch.cat([self.prior_value.expand(batch, -1, -1, -1), F.pad(values, (0, columns))], -2)
        if self.config._attn_implementation == "eager":
            logits = precise.new_tensor(width**-0.5) * (query.to(precise) @ keys.to(precise).mT)
            if mask is not None:
                logits = torch.where(mask, logits, -torch.inf) if mask.dtype == torch.bool else logits + mask
            weights = logits.softmax(-1).to(dtype)
            found = weights @ values
        else:
            weights = None
            found = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=width**-0.5)
        prior = found[..., width, None]
        return found[..., :width] + (prior * swing + gated).to(dtype), weights

    def _visible(self, mask: Tensor | None, query: Tensor, keys: Tensor) -> Tensor | None:
        """The layer's mask with the prior before it, which every query sees; True, or 0 to be added, where one does."""
        steps, length = query.shape[-2], keys.shape[-2]
        if mask is not None:
            mask = mask[..., :length]
            return F.pad(mask, (1, 0), value=True) if mask.dtype == torch.bool else F.pad(mask, (1, 0)).to(query.dtype)
        if not self.causal or steps == 1:
            return None
        return torch.ones(steps, length + 1, dtype=torch.bool, device=query.device).tril(length - steps + 1)


@cache
def _denoising(of: type[nn.Module]) -> type[nn.Module]:
    """A class of its own for each, so that what knows a layer by its class, as the record of weights, still does."""
    return type(f"Denoising{of.__name__}", (DenoisingAttention, of), {})
