"""The variational autoencoder of vectors (Kingma & Welling 2014; Rezende et al. 2014).

    z ~ p(z)
    x ~ p(x | f),   f = decoder(z),   p Bernoulli or diagonal Gaussian

With `decoder_prior_scale` s the decoder's weights are latents too, drawn once for all data (appendix F):

    w ~ N(0, s²),   f = decoder(z; w)

The array `x` (N, D) of the data is one site with an event of D.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, PositiveFloat

from .batch import Batch
from .latent_weights import WeightPrior, latent
from .likelihoods import BernoulliLikelihood, Likelihood
from .mlp import MLP
from .ppl import PPL
from .priors import Prior, StandardNormal
from .spec import Network, Spec

SITES = {"z": ("z_dim",), "x": ("x_dim",)}


class VAEModel(Spec):
    """The `[model]` table of a VAE of vectors; the decoder's sizes come from prior and data."""

    prior: Prior = StandardNormal()
    decoder: MLP = MLP(hidden=(500,))
    likelihood: Likelihood = BernoulliLikelihood()
    decoder_prior_scale: PositiveFloat | None = Field(
        default=None, description="s, of the decoder's weights as latents; None: they are parameters"
    )

    def networks(self, width: int) -> dict[str, Network]:
        sizes = {"inputs": self.prior.dim, "outputs": self.likelihood.features(width)}
        parts = {"prior": self.prior.network(width=width), "likelihood": Network(self.likelihood)}
        if self.decoder_prior_scale is None:
            return parts | {"decoder": Network(self.decoder, sizes)}
        decoder = latent(self.decoder)
        weights = WeightPrior(network=decoder, scale=self.decoder_prior_scale)
        return parts | {"decoder": Network(decoder, sizes), "decoder_prior": Network(weights, sizes)}


def vae(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """p(x, z), one row a vector."""
    prior, decoder, likelihood = (ppl.module(name, nets[name]) for name in ("prior", "decoder", "likelihood"))
    weights = ()
    if "decoder_prior" in nets:
        laws = ppl.module("decoder_prior", nets["decoder_prior"])()
        weights = ({name: ppl.sample(f"decoder.{name}", law) for name, law in laws.items()},)
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", prior())
        ppl.sample("x", likelihood(decoder(z, *weights)), obs=batch.x)
