"""The amortised guide of the NVAE.

    F ~ q(F | x) = posterior(h_1 … h_n),   h = encoder(x_1 … x_n)

The encoder reads the sentence and its end mark as they are, without word dropout. Bottlenecks in self-attention (Behjati,
Fehr & Henderson 2023) stand between the encoder and that posterior, the lowest first:

    F_l ~ posterior_l(h),   h ← block_l(h, F_l),   l = 1 … L

where block_l attends to the atoms of F_l, and log α of a word in each posterior above the lowest adds up on that below it,
at first unchanged, so that a vector that vanished stays away; the prior's component has its own pseudo-count in each. The F_l are auxiliary
variables, as `models/nvae.py` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from ..models.batch import Batch
from ..models.nvae import stacked
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from .encoders import VectorEncoder
from .measures import DirichletProcessPosterior, MeasurePosterior


class NVAEGuide(Spec):
    """The `[guide]` table of an NVAE."""

    posterior: MeasurePosterior = DirichletProcessPosterior()
    encoder: VectorEncoder = VectorEncoder()
    stacked: NonNegativeInt = Field(
        default=0, description="L, blocks above the encoder's whose self-attention reads a bottleneck of its own"
    )

    @model_validator(mode="after")
    def _measures_alone_are_stacked(self) -> NVAEGuide:
        if self.stacked and not isinstance(self.posterior, DirichletProcessPosterior):
            raise ValueError(
                f"stacked = {self.stacked} bottlenecks in self-attention are of random measures, and the posterior "
                f"{self.posterior.kind!r} has none: use the posterior 'dirichlet_process', or stacked = 0"
            )
        return self

    def networks(self, vocabulary: int, latent: int) -> dict[str, Network]:
        sizes = {"features": self.encoder.hidden, "latent": latent}
        networks = {"encoder": Network(self.encoder, {"vocabulary": vocabulary})}
        posterior = self.posterior
        for layer in range(1, 1 + self.stacked):
            networks[f"posterior_{layer}"] = Network(posterior, sizes)
            networks[f"block_{layer}"] = Network(self.encoder.block(), {"latent": latent})
            posterior = self.posterior.model_copy(update={"initial_log_alpha": 0.0})
        return networks | {"posterior": Network(posterior, sizes)}


def nvae_guide(ppl: PPL, batch: Batch, nets: Mapping[str, Network]) -> None:
    """q(F_1 … F_L, F | x), one row a sentence."""
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        h = encoder(batch.targets, batch.lengths)
        below: tuple[Any, ...] = ()
        for layer in range(1, 1 + stacked(nets)):
            bottleneck, block = (
                ppl.module(f"{name}_{layer}", nets[f"{name}_{layer}"]) for name in ("posterior", "block")
            )
            law = bottleneck(h, batch.lengths, *below)
            h = block(h, ppl.sample(f"F_{layer}", law))
            below = (law.log_alpha[..., 1:],)
        ppl.sample("F", posterior(h, batch.lengths, *below))
