"""The amortised guide of the VAE of vectors.

z ~ q(z | x) = posterior(encoder(x))
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveInt

from ..models.batch import Batch
from ..models.mlp import MLP
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from .posteriors import DiagonalNormal, Posterior


class VAEGuide(Spec):
    """The `[guide]` table of a VAE of vectors: x through the encoder to H features, and these to the posterior."""

    posterior: Posterior = DiagonalNormal()
    encoder: MLP = MLP(hidden=(), activate_outputs=True)
    features: PositiveInt = Field(default=500, description="H, what the encoder puts out")

    def networks(self, width: int, latent: int) -> dict[str, Network]:
        return {
            "encoder": Network(self.encoder, {"inputs": width, "outputs": self.features}),
            "posterior": Network(self.posterior, {"features": self.features, "latent": latent}),
        }


def vae_guide(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """q(z | x), one row a vector."""
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))
