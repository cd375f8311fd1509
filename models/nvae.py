"""The nonparametric variational autoencoder (Henderson & Fehr 2023, §4), and its relatives with a Gaussian per vector.

    n   ~ p(n)                                   words of the sentence and its end mark
    F   ~ p(F | n)                               Σ_k π_k δ(z_k) of a Dirichlet process, or a set of vectors
    x_t ~ Categorical(softmax(W h_t)),   h_t = decoder(x_1 … x_{t-1}, F),   t = 1 … T, ends with eos

Each block of the decoder reads F by attention: of a random measure the denoising attention of `engines/*/denoising.py`, of
plain vectors the usual one. n is what a sentence's length says, so that p(x) ≥ p(n) ∫ p(F | n) p(x | F) dF; where the size
of F does not hang on it there is no such site.

A guide with bottlenecks in its self-attention draws one more random measure in each, F_1 … F_L. They are auxiliary
variables of variational inference: p(x, n, F_1 … F_L, F) = p(n) Π_l p(F_l | n) p(F | n) p(x | F), where no word reads F_l,
so that p(x, n) is the same and every bound of it stays one, less tight. What they are for is their KLs, which regularise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, PositiveInt

from .batch import Batch
from .errors import BadInput
from .measures import DirichletProcessPrior, LengthLaw, MeasurePrior
from .ppl import PPL
from .spec import Network, Spec
from .transformers import MemoryDecoder

SITES = {"n": (), "F": ("atom", "coordinate"), "x": ("token",)}


class NVAEModel(Spec):
    """The `[model]` table of an NVAE."""

    prior: MeasurePrior = DirichletProcessPrior()
    decoder: MemoryDecoder = MemoryDecoder()
    longest: PositiveInt = Field(default=128, description="words of a sentence, with its end mark, at most")

    def refuse(self, words: int) -> None:
        """BadInput if a sentence of the data has more words, with its end mark, than p(n) knows."""
        if words > self.longest:
            raise BadInput(
                f"model.longest = {self.longest} is the most words of a sentence with its end mark, and the data have one "
                f"of {words}: model.longest={words} would be right"
            )

    def networks(self, vocabulary: int) -> dict[str, Network]:
        sizes = {"vocabulary": vocabulary, "latent": self.prior.dim, "weighted": int(self.prior.weighted)}
        networks = {"prior": Network(self.prior), "decoder": Network(self.decoder, sizes)}
        return networks | ({"length": Network(LengthLaw(longest=self.longest))} if self.prior.by_length else {})


def stacked(nets: Mapping[str, Any]) -> int:
    """L, the blocks of the guide that read a bottleneck."""
    return sum(name.startswith("block_") for name in nets)


def nvae(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """p(x, n, F_1 … F_L, F), one row a sentence."""
    prior, decoder = (ppl.module(name, nets[name]) for name in ("prior", "decoder"))
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        if "length" in nets:
            ppl.sample("n", ppl.module("length", nets["length"])(), obs=batch.lengths)
        for layer in range(1, 1 + stacked(nets)):
            ppl.sample(f"F_{layer}", prior(batch.lengths, batch.targets.shape[-1]))
        measure = ppl.sample("F", prior(batch.lengths, batch.targets.shape[-1]))
        ppl.sample("x", decoder(measure, batch.inputs, batch.lengths), obs=batch.targets)
