"""The amortised guide of the sentence VAE.

    z ~ q(z | x) = posterior(encoder(x_0 … x_T))

The encoder reads the sentence as it is, without word dropout.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..models.batch import Batch
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from .encoders import Encoder, LSTMEncoder
from .posteriors import DiagonalNormal, Posterior


class SentenceGuide(Spec):
    """The `[guide]` table of a sentence VAE."""

    posterior: Posterior = DiagonalNormal()
    encoder: Encoder = LSTMEncoder()

    def networks(self, vocabulary: int, latent: int) -> dict[str, Network]:
        return {
            "encoder": Network(self.encoder, {"vocabulary": vocabulary}),
            "posterior": Network(self.posterior, {"features": self.encoder.features, "latent": latent}),
        }


def sentence_guide(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """q(z | x), one row a sentence."""
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.tokens, batch.lengths + 1)))
