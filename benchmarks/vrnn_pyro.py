"""The VRNN of `benchmarks.vrnn_step` by hand in PyTorch, and as a stock Pyro program."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """The parameters by the engine's names, a dot as an underscore, and what reads them at one step or at all."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, value in weights.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.tensor(value)))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """One hidden layer."""
        w: Any = self
        x = F.linear(x, getattr(w, f"{name}_weight_0"), getattr(w, f"{name}_bias_0")).relu()
        return F.linear(x, getattr(w, f"{name}_weight_1"), getattr(w, f"{name}_bias_1"))

    def prior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_variance = self.mlp("prior", h).chunk(2, -1)
        return loc, log_variance

    def posterior(self, features: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        w: Any = self
        read = F.linear(torch.cat((features, h), -1), w.encoder_weight_0, w.encoder_bias_0).relu()
        loc, log_variance = F.linear(read, w.posterior_weight).chunk(2, -1)
        return loc, log_variance

    def emission(self, latent: Tensor, h: Tensor) -> Tensor:
        return self.mlp("decoder", torch.cat((latent, h), -1))

    def cell(self, features: Tensor, latent: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        w: Any = self
        gates = F.linear(features, w.cell_weight_inputs, w.cell_bias_ih) + F.linear(latent, w.cell_weight_latent)
        return lstm(gates + F.linear(h, w.cell_weight_hh), c)


def lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def bound(net: Network, shape: Any, x: Tensor, noise: Tensor) -> Tensor:
    """The ELBO (B,) of x (T, B, X) at the draws of ε (T, B, Z)."""
    w: Any = net
    features = net.mlp("inputs", x).relu()
    width = features.shape[-1]
    inputs = F.linear(features, w.cell_weight_inputs, w.cell_bias_ih)
    read = F.linear(features, w.encoder_weight_0[:, :width], w.encoder_bias_0)
    of_state, recurrent = w.encoder_weight_0[:, width:], torch.cat((w.cell_weight_latent, w.cell_weight_hh), 1)
    h = c = x.new_zeros(shape.rows, shape.hidden)
    states, locs, log_variances, latents = [], [], [], []
    for u, e, epsilon in zip(inputs.unbind(0), read.unbind(0), noise.unbind(0), strict=True):
        loc, log_variance = F.linear((e + F.linear(h, of_state)).relu(), w.posterior_weight).chunk(2, -1)
        if shape.residual:
            at = F.linear(h, w.prior_weight_0, w.prior_bias_0).relu()
            shift = F.linear(at, w.prior_weight_1[: shape.latent], w.prior_bias_1[: shape.latent])
            z = shift + loc + (0.5 * log_variance).exp() * epsilon
        else:
            z = loc + (0.5 * log_variance).exp() * epsilon
        latent = net.mlp("latents", z).relu()
        for part, value in zip((states, locs, log_variances, latents), (h, loc, log_variance, latent), strict=True):
            part.append(value)
        h, c = lstm(u + F.linear(torch.cat((latent, h), -1), recurrent), c)
    h = torch.stack(states)
    loc, log_variance = torch.stack(locs), torch.stack(log_variances)
    p_loc, p_log_variance = net.prior(h)
    difference = loc if shape.residual else loc - p_loc
    kl = 0.5 * (
        p_log_variance - log_variance - 1 + (log_variance.exp() + difference.square()) / p_log_variance.exp()
    ).sum((0, 2))
    logits = net.emission(torch.stack(latents), h)
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((0, 2)) - kl


def elbo(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The ELBO (B,) of x (B, T, X) at the draws of ε (T, B, Z)."""
    with torch.no_grad():
        return bound(Network(weights), shape, torch.tensor(x).transpose(0, 1), torch.tensor(noise)).numpy()


def hand(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """A plain loop, and fused Adam."""
    net, data = Network(weights), torch.tensor(x).transpose(0, 1).contiguous()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step() -> float:
        optimiser.zero_grad()
        loss = -bound(net, shape, data, torch.randn(shape.steps, shape.rows, shape.latent)).mean()
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def stock(shape: Any, weights: dict[str, np.ndarray], x: np.ndarray) -> Any:
    """Sites of their own at each step, inside `pyro.markov`, with `TraceMeanField_ELBO` and stock SVI."""
    net, data = Network(weights), torch.tensor(x)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        h = c = x.new_zeros(shape.rows, shape.hidden)
        with pyro.plate("sequences", shape.rows):
            for t in pyro.markov(range(shape.steps)):
                loc, log_variance = net.prior(h)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))
                latent = net.mlp("latents", z).relu()
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=net.emission(latent, h)).to_event(1), obs=x[:, t])
                h, c = net.cell(net.mlp("inputs", x[:, t]).relu(), latent, h, c)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        h = c = x.new_zeros(shape.rows, shape.hidden)
        with pyro.plate("sequences", shape.rows):
            for t in pyro.markov(range(shape.steps)):
                features = net.mlp("inputs", x[:, t]).relu()
                loc, log_variance = net.posterior(features, h)
                loc = loc + net.prior(h)[0] if shape.residual else loc
                z = pyro.sample(f"z_{t}", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))
                h, c = net.cell(features, net.mlp("latents", z).relu(), h, c)

    pyro.clear_param_store()
    svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda: svi.step(data)
