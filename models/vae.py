"""The variational autoencoder of vectors (Kingma & Welling 2014; Rezende et al. 2014).

    z ~ p(z)
    x ~ p(x | f),   f = decoder(z),   p Bernoulli, diagonal Gaussian, a mixture, or of pen strokes

With `decoder_prior_scale` s the decoder's weights are latents too, drawn once for all data (appendix F):

    w ~ N(0, s²),   f = decoder(z; w)

The array `x` (N, D) of the data is one site with an event of D.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field, PositiveFloat

from .batch import Batch
from .errors import BadInput
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

    def checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays with x as numbers that the likelihood has: (N, D), in [0, 1] where it asks for that.

        Raises:
            BadInput: there is no such x.
        """
        x = arrays.get("x")
        if x is None or x.ndim != 2 or x.dtype.kind not in "fiub":
            what = "none" if x is None else f"one of {x.dtype} and shape {x.shape}"
            raise BadInput(f"the pair 'vae' reads an array x of numbers, (rows, D), and the data have {what}")
        unit = self.likelihood.kind == "bernoulli" or getattr(self.likelihood, "bounded", False)
        if unit and (x.min() < 0 or x.max() > 1):
            raise BadInput(
                f"model.likelihood.kind = {self.likelihood.kind!r} is for x from 0 to 1, and here it goes from {x.min():g} "
                f"to {x.max():g}: scale x, or choose the kind gaussian"
            )
        if not unit:
            self.likelihood.refuse(x)
        return {**arrays, "x": x if x.dtype.kind == "f" else x.astype(np.float32)}

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
