"""KLs between normals with diagonal covariances, of components that may be missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def normal_kl(loc: Tensor, scale: Tensor, of_loc: Tensor, of_scale: Tensor, mask: Tensor) -> Tensor:
    """KL(N(μ, diag σ²)‖N(m, diag s²)) (…, M) in nats, from μ and σ (…, M, p), and m and s that broadcast against them; 0
    where `mask` (…, M) is false, whatever stands there.
    """
    return _NormalKL.apply(loc, scale, of_loc, of_scale, mask)


class _NormalKL(torch.autograd.Function):
    """In few passes over (…, M, p), of which nothing but the parameters is kept."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, of_loc: Tensor, of_scale: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(loc, scale, of_loc, of_scale, mask)
        inverse = of_scale.reciprocal()
        apart, ratio = (loc - of_loc).mul_(inverse), scale * inverse
        twice_log = ratio.log().mul_(2)
        spread = ratio.square_().sub_(1).sub_(twice_log).sum(-1)
        return (0.5 * (torch.linalg.vector_norm(apart, dim=-1).square() + spread)).where(mask, 0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        loc, scale, of_loc, of_scale, mask = ctx.saved_tensors
        upstream, empty = gradients[0].unsqueeze(-1), ~mask.unsqueeze(-1)
        precision = of_scale.square().reciprocal()
        found = [(loc - of_loc).mul_(precision).mul_(upstream)]
        found += [(scale * precision).sub_(scale.reciprocal()).mul_(upstream)]
        if any(ctx.needs_input_grad[2:4]):
            kept = loc.where(~empty, of_loc), scale.where(~empty, of_scale)
            squares = ((kept[0] - of_loc).square() + kept[1].square()) * precision
            found += [-found[0], (1 - squares) / of_scale * upstream]
        found = [x.masked_fill_(empty, 0) for x in found]
        summed = [x.sum_to_size(y.shape) for x, y in zip(found[2:], (of_loc, of_scale), strict=False)]
        return (*found[:2], *(summed or (None, None)), None)
