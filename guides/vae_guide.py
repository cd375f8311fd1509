"""The amortised guide of the VAE of vectors.

z ~ q(z | x) = posterior(encoder(x));   where the decoder's weights are latents, w ~ q(w), a normal for each
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveFloat, PositiveInt

from ..models.batch import Batch
from ..models.latent_weights import LatentMLP, WeightPosterior
from ..models.mlp import MLP
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from .posteriors import DiagonalNormal, Posterior


class VAEGuide(Spec):
    """The `[guide]` table of a VAE of vectors: x through the encoder to H features, and these to the posterior."""

    posterior: Posterior = DiagonalNormal()
    encoder: MLP = MLP(hidden=(), activate_outputs=True)
    features: PositiveInt = Field(default=500, description="H, what the encoder puts out")
    weights_scale: PositiveFloat = Field(
        default=0.05, description="how wide q of the decoder's weights starts, where they are latents"
    )

    def networks(self, width: int, latent: int, decoder: Network) -> dict[str, Network]:
        """decoder: the model's."""
        parts = {
            "encoder": Network(self.encoder, {"inputs": width, "outputs": self.features}),
            "posterior": Network(self.posterior, {"features": self.features, "latent": latent}),
        }
        if not isinstance(decoder.spec, LatentMLP):
            return parts
        weights = WeightPosterior(network=decoder.spec, initial_scale=self.weights_scale)
        return parts | {"decoder_posterior": Network(weights, decoder.sizes)}


def vae_guide(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """q(z | x), one row a vector."""
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    if "decoder_posterior" in nets:
        for name, law in ppl.module("decoder_posterior", nets["decoder_posterior"])().items():
            ppl.sample(f"decoder.{name}", law)
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))
