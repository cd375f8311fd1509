"""The variational autoencoder of vectors (Kingma & Welling 2014; Rezende et al. 2014).

    z ~ p(z)
    x ~ p(x | f),   f = decoder(z),   p Bernoulli or diagonal Gaussian

The array `x` (N, D) of the data is one site with an event of D.
"""

from __future__ import annotations

from collections.abc import Mapping

from .batch import Batch
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

    def networks(self, width: int) -> dict[str, Network]:
        sizes = {"inputs": self.prior.dim, "outputs": self.likelihood.features(width)}
        return {
            "prior": self.prior.network(width=width),
            "decoder": Network(self.decoder, sizes),
            "likelihood": Network(self.likelihood),
        }


def vae(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """p(x, z), one row a vector."""
    prior, decoder, likelihood = (ppl.module(name, nets[name]) for name in ("prior", "decoder", "likelihood"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", prior())
        ppl.sample("x", likelihood(decoder(z)), obs=batch.x)
