"""The recurrent language model: the sentence VAE without its latent, and the baseline its numbers stand beside.

x_t ~ Categorical(softmax(W h_t)),   h_t = cell(h_{t-1}, embedding(x_{t-1}))
"""

from __future__ import annotations

from collections.abc import Mapping

from .batch import Batch
from .decoders import Decoder, LSTMDecoder
from .ppl import PPL
from .spec import Network, Spec

SITES = {"x": ("token",)}


class LanguageModel(Spec):
    """The `[model]` table of a language model."""

    decoder: Decoder = LSTMDecoder()

    def networks(self, vocabulary: int) -> dict[str, Network]:
        return {"decoder": Network(self.decoder, {"vocabulary": vocabulary, "latent": 0})}


def language_model(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """p(x), one row a sentence."""
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("x", decoder(None, batch.inputs, batch.lengths), obs=batch.targets)
