"""Discrete latents, plain and relaxed: a relaxed draw is differentiable, mass and KL stay the discrete ones."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.utils import clamp_probs

Bernoulli = dist.Bernoulli
OneHotCategorical = dist.OneHotCategorical


class ConcreteBernoulli(Bernoulli):
    """A Bernoulli whose `rsample` is sigmoid((logits + logistic noise) / temperature) (Maddison et al. 2017).

    straight_through: the draw is rounded, its gradient that of the unrounded (Jang et al. 2017).
    """

    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, straight_through: bool) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.temperature, self.straight_through = temperature, straight_through

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConcreteBernoulli:
        return ConcreteBernoulli(self.logits.expand(batch_shape), self.temperature, self.straight_through)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = clamp_probs(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)).logit()
        soft = ((self.logits + noise) / self.temperature).sigmoid()
        return soft - soft.detach() + soft.round().detach() if self.straight_through else soft


class ConcreteCategorical(OneHotCategorical):
    """Unit vectors, `rsample` softmax((logits + Gumbel noise) / temperature) (Maddison et al. 2017; Jang et al. 2017).

    straight_through: the draw is the nearest unit vector, its gradient that of the unrounded.
    """

    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, straight_through: bool) -> None:
        super().__init__(logits=logits, validate_args=False)
        self.temperature, self.straight_through = temperature, straight_through

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConcreteCategorical:
        logits = self.logits.expand(*batch_shape, -1)
        return ConcreteCategorical(logits, self.temperature, self.straight_through)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = -clamp_probs(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)).log().neg().log()
        soft = ((self.logits + noise) / self.temperature).softmax(-1)
        if not self.straight_through:
            return soft
        hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
        return soft - soft.detach() + hard
