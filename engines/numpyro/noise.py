"""Common random numbers: with one seed the engines draw the same normal latents, so that they judge alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Normal
from numpyro.primitives import Messenger

from .analytic import peel
from .unrolled import Unrolled


class CommonNoise(Messenger):
    """Around a guide: draws each diagonal normal latent as loc + scale · ε, ε = `draws.standard_normal(seed, site)`.

    Latents of other families, and those inside a scan, are left to the engine's own generator.

    Args:
        noise: site → ε, handed in so that a compiled program serves every seed; without, the sites are only listed.

    Attributes:
        shapes: site → the shape its ε has.
    """

    def __init__(self, fn: Callable[..., Any] | None = None, noise: Mapping[str, Array] | None = None) -> None:
        super().__init__(fn)
        self.noise = noise
        self.shapes: dict[str, tuple[int, ...]] = {}

    def process_message(self, msg: Any) -> None:
        if msg["type"] != "sample" or msg["is_observed"] or msg["value"] is not None:
            return
        base, _, _ = peel(msg["fn"])
        if not isinstance(base, (Normal, Unrolled)):
            return
        shape = self.shapes[msg["name"]] = tuple(msg["fn"].shape())
        noise = None if self.noise is None else self.noise[msg["name"]].reshape(shape)
        if isinstance(base, Unrolled):
            base.noise = noise
        elif noise is not None:
            parts: list[Any] = [base.loc, base.scale]
            loc, scale = (jnp.broadcast_to(part, shape) for part in parts)
            msg["value"] = loc + scale * noise
