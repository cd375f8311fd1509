"""The sentence VAE (Bowman et al. 2016; the LSTM-VAE of Kim et al. 2018, He et al. 2019 and Li et al. 2019).

    z   ~ p(z)
    x_t ~ Categorical(softmax(W h_t)),   h_t = cell(h_{t-1}, [embedding(x_{t-1}); z]),   t = 1 … T, ends with eos

One latent for a whole sentence; the words are one site whose event is the sentence, masked by its length.
Word dropout (Bowman's second remedy) is noise of the data: `batch.inputs` holds the decoder's inputs with it applied.
"""

from __future__ import annotations

from collections.abc import Mapping

from .batch import Batch
from .decoders import Decoder, LSTMDecoder
from .ppl import PPL
from .priors import Prior, StandardNormal
from .spec import Network, Spec

SITES = {"z": ("z_dim",), "x": ("token",)}


class SentenceModel(Spec):
    """The `[model]` table of a sentence VAE."""

    prior: Prior = StandardNormal()
    decoder: Decoder = LSTMDecoder()

    def networks(self, vocabulary: int, embedding: int) -> dict[str, Network]:
        """embedding: E of the encoder."""
        sizes = {"vocabulary": vocabulary, "latent": self.prior.dim}
        return {"prior": self.prior.network(embedding=embedding), "decoder": Network(self.decoder, sizes)}


def sentence_vae(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """p(x, z), one row a sentence."""
    prior, decoder = (ppl.module(name, nets[name]) for name in ("prior", "decoder"))
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", prior())
        ppl.sample("x", decoder(z, batch.inputs, batch.lengths), obs=batch.targets)
