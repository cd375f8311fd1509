"""Weights of a network as latents, drawn once for all data (Kingma & Welling 2014, appendix F).

w ~ N(0, scale²) for every weight and bias;   y = mlp(x; w)
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat

from .mlp import MLP
from .spec import Spec, Weight


class LatentMLP(MLP):
    """An MLP without weights of its own: mlp(x, weights)."""

    kind: Literal["latent_mlp"] = "latent_mlp"

    def layout(self, inputs: int | None = None, outputs: int | None = None) -> dict[str, Weight]:
        return {}

    def shapes(self, **sizes: int) -> dict[str, Weight]:
        """What the weights of such an MLP look like, by name."""
        return super().layout(**sizes)


class WeightPrior(Spec):
    """p(w) = N(0, scale²) of every weight of `network`: name → distribution."""

    kind: Literal["weight_prior"] = "weight_prior"
    network: LatentMLP
    scale: PositiveFloat = 1.0

    def layout(self, **sizes: int) -> dict[str, Weight]:
        return {}


class WeightPosterior(Spec):
    """q(w) = N(m, s²) of every weight of `network`, all independent: name → distribution.

    m starts as the plain network's weight would, s at `initial_scale`; learned are m and log (s / initial_scale).
    """

    kind: Literal["weight_posterior"] = "weight_posterior"
    network: LatentMLP
    initial_scale: PositiveFloat = 0.05

    def layout(self, **sizes: int) -> dict[str, Weight]:
        shapes = self.network.shapes(**sizes)
        return {f"{name}_loc": start for name, start in shapes.items()} | {
            f"{name}_log_scale": Weight(start.shape, 0.0) for name, start in shapes.items()
        }


def latent(network: MLP) -> LatentMLP:
    """The same network, its weights latents."""
    return LatentMLP.model_validate(network.model_dump(exclude={"kind"}))
