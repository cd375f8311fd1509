"""Steps of the nonparametric bottleneck and of what it is measured against, on PyTorch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn import functional as F

from benchmarks.bottleneck_step import PRIOR, posterior
from benchmarks.measuring import Step
from guidebook.engines.pyro.measures import MEASURES
from guidebook.models.spec import Network

Arrays = Mapping[str, np.ndarray]


def ours(arrays: Arrays, objective: str) -> Step:
    spec = posterior(objective)
    prior = MEASURES[type(PRIOR)](Network(PRIOR), {}, torch.float32, "float32")
    layer = MEASURES[type(spec)](Network(spec, _sizes(arrays)), arrays, torch.float32, "float32").train()
    h, upstream, lengths = _given(arrays)

    def step() -> None:
        h.grad = None
        layer.zero_grad()
        q, p = layer(h, lengths, prior=prior), prior(lengths, h.shape[-2])
        torch.autograd.backward((q.rsample(), kl_divergence(q, p).sum()), (upstream, None))

    return step


def hand(arrays: Arrays) -> Step:
    """Stratified draws and the published penalties, as one writes them."""
    h, upstream, _ = _given(arrays)
    names = ("loc", "loc_bias", "log_variance", "log_variance_bias", "alpha", "alpha_bias", "alpha_square")
    weights = [torch.from_numpy(arrays[name]).requires_grad_() for name in names]

    def step() -> None:
        for each in (h, *weights):
            each.grad = None
        loc, loc_bias, log_variance, log_variance_bias, alpha, alpha_bias, square = weights
        zero = h.new_zeros(len(h), 1, loc.shape[0])
        mu = torch.cat((zero, F.linear(h, loc, loc_bias)), 1)
        logs = torch.cat((zero, F.linear(h, log_variance, log_variance_bias)), 1)
        log_alpha = torch.cat((zero[..., 0], h @ alpha + h.square() @ square + alpha_bias), 1)
        counts = log_alpha.exp()
        drawn = torch._standard_gamma(counts).clamp(min=1e-30).log()
        z = mu + (0.5 * logs).exp() * torch.randn_like(mu)
        draw = torch.cat((drawn.log_softmax(-1).unsqueeze(-1), z), -1)
        total, atoms = counts.sum(-1), float(counts.shape[-1])
        prior = torch.full_like(total, atoms)
        weighing = total.lgamma() - prior.lgamma() + (total - prior) * ((total / atoms).digamma() - total.digamma())
        weighing = weighing + atoms * ((prior / atoms).lgamma() - (total / atoms).lgamma())
        each = 0.5 * (mu.square() + logs.exp() - 1 - logs).sum(-1)
        placing = atoms * (counts / total.unsqueeze(-1) * each).sum(-1)
        torch.autograd.backward((draw, (weighing + placing).sum()), (upstream, None))

    return step


def floor(arrays: Arrays) -> Step:
    h = torch.from_numpy(arrays["h"]).flatten(0, 1)
    weights = [torch.from_numpy(arrays[name]) for name in ("loc", "log_variance")]
    outs = [torch.empty(len(h), len(weight)) for weight in weights]
    backs = [torch.empty_like(h), *(torch.empty_like(weight) for weight in weights)]

    def step() -> None:
        for weight, out in zip(weights, outs, strict=True):
            torch.mm(h, weight.T, out=out)
        torch.mm(outs[0], weights[0], out=backs[0])
        backs[0].addmm_(outs[1], weights[1])
        for out, back in zip(outs, backs[1:], strict=True):
            torch.mm(out.T, h, out=back)

    return step


def _given(arrays: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    h = torch.tensor(arrays["h"], requires_grad=True)
    return h, torch.from_numpy(arrays["upstream"]), torch.full(h.shape[:1], h.shape[1])


def _sizes(arrays: Arrays) -> dict[str, int]:
    latent, features = arrays["loc"].shape
    return {"features": features, "latent": latent}
