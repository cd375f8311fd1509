"""Common random numbers: with one seed the engines draw the same normal latents, so that they judge alike."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import Normal

from ..draws import standard_normal
from .analytic import peel
from .unrolled import Unrolled


class CommonNoise(Messenger):
    """Around a guide: draws each diagonal normal latent as loc + scale · ε, ε = `draws.standard_normal(seed, site)`.

    Latents of other families are left to the engine's own generator.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        base, _ = peel(msg["fn"])
        if isinstance(base, (Normal, Unrolled)):
            noise = torch.as_tensor(standard_normal(self.seed, msg["name"], tuple(msg["fn"].shape())))
            if isinstance(base, Unrolled):
                base.noise = noise
            else:
                msg["value"] = base.loc + base.scale * noise.to(base.loc)
