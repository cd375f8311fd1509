"""Transformers (Vaswani et al. 2017): what their encoder and decoder share, and the decoder p(x | z).

A block, with the norm before each part (pre) or after its sum (post):

    pre     h ← h + attention(norm(h)),   h ← h + feedforward(norm(h)),   at the end norm(h)
    post    h ← norm(h + attention(h)),   h ← norm(h + feedforward(h))

The latent of a decoder enters as in Li et al. (2020), added to the embedding of every word:

    h_t = √H · embedding(x_{t-1}) + W_z z,   t = 1 … T          x_t ~ Categorical(softmax(W_o block(… block(h_1 … h_t))))

A decoder that attends to a memory F, of vectors of width p, reads it in each block between these parts,

    h ← h + W_o attention_F(norm(h))         queries W_q norm(h), keys W_k z, values W_v z of the vectors z of F

Positions turn queries and keys (rotary, Su et al. 2021), or are added to h as sines of geometric frequencies (sinusoidal).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from .spec import Spec, Weight

Attend = Callable[[Any, Any, Any], Any]
"""What is read of values by queries and keys: arrays of either engine."""


class Transformer(Spec):
    """The stack of blocks. Widths: H of the model, H / heads of a head, F of the feedforward part."""

    kind: Literal["transformer"] = "transformer"
    hidden: PositiveInt = Field(default=256, description="H, width of embeddings and blocks")
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    feedforward: PositiveInt | None = Field(default=None, description="F; None: 4 H")
    norm: Literal["pre", "post"] = "pre"
    positions: Literal["rotary", "sinusoidal"] = "rotary"
    dropout: NonNegativeFloat = Field(
        default=0.1, lt=1, description="on embeddings and on what each part adds, in training only"
    )

    @model_validator(mode="after")
    def _heads_fit(self) -> Transformer:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden = {self.hidden} does not divide into {self.heads} heads of an even width")
        return self

    @property
    def embedding(self) -> int:
        """E, width of the word embeddings."""
        return self.hidden

    @property
    def inner(self) -> int:
        """F."""
        return self.feedforward or 4 * self.hidden

    def blocks(self) -> dict[str, Weight]:
        """The weights of each block, by the number of its layer, and of the last norm."""
        hidden, inner = self.hidden, self.inner
        residual = (2 * self.layers) ** -0.5  # what the parts add keeps the variance of h near one
        weights: dict[str, Weight] = {}
        for layer in range(self.layers):
            for name, shape, scale in (
                ("attention_in", (3 * hidden, hidden), 1.0),
                ("attention_out", (hidden, hidden), residual),
                ("feedforward_in", (inner, hidden), 1.0),
                ("feedforward_out", (hidden, inner), residual),
            ):
                weights[f"{name}_{layer}"] = Weight(shape, scale * shape[1] ** -0.5)
                weights[f"{name}_bias_{layer}"] = Weight(shape[:1], 0.0)
            for name in ("attention_norm", "feedforward_norm"):
                weights[f"{name}_{layer}"] = Weight((hidden,), 0.0, start=1.0)
                weights[f"{name}_bias_{layer}"] = Weight((hidden,), 0.0)
        if self.norm == "pre":
            weights |= {"norm": Weight((hidden,), 0.0, start=1.0), "norm_bias": Weight((hidden,), 0.0)}
        return weights


class TransformerDecoder(Transformer):
    """A causal Transformer over the words so far. Sizes from the surroundings: `vocabulary` V, `latent` Z (0: none)."""

    tie_embeddings: bool = Field(default=True, description="W_o is the embedding matrix")

    def layout(self, *, vocabulary: int, latent: int) -> dict[str, Weight]:
        scale = self.hidden**-0.5
        weights = {"embedding": Weight((vocabulary, self.hidden), scale)} | self.blocks()
        if latent:
            weights["latent"] = Weight((self.hidden, latent), latent**-0.5)
        if not self.tie_embeddings:
            weights["output"] = Weight((vocabulary, self.hidden), scale)
        return weights


class MemoryDecoder(Transformer):
    """A causal Transformer over the words so far that attends to a memory. Sizes from the surroundings: `vocabulary` V,
    `latent` p, `weighted`: whether the memory is a random measure, for denoising attention, or plain vectors.

    rule: of reading the mean of a posterior, Σ_i α_i N_i, in place of a draw. "points" reads its means as a draw's atoms,
    weighted by α_i, as the decoder has learnt to read them, at the cost of plain attention. "exact" is the posterior mean of
    a query's noise-free value under the mixture, "reference" the published code's form of it. Where a decoder's queries are
    larger than that model has them, "exact" turns to the broadest component, the prior's.
    """

    positions: Literal["rotary", "sinusoidal"] = "sinusoidal"
    tie_embeddings: bool = Field(default=True, description="W_o is the embedding matrix")
    rule: Literal["points", "exact", "reference"] = Field(
        default="points",
        description="how the mean of a random measure is read: as its components' means, or as mixtures",
    )

    def layout(self, *, vocabulary: int, latent: int, weighted: int) -> dict[str, Weight]:
        hidden, scale = self.hidden, self.hidden**-0.5
        weights = {"embedding": Weight((vocabulary, hidden), scale)} | self.blocks()
        for layer in range(self.layers):
            weights |= {
                f"memory_query_{layer}": Weight((hidden, hidden), scale),
                f"memory_key_{layer}": Weight((hidden, latent), latent**-0.5),
                f"memory_value_{layer}": Weight((hidden, latent), latent**-0.5),
                f"memory_out_{layer}": Weight((hidden, hidden), (3 * self.layers) ** -0.5 * scale),
                f"memory_norm_{layer}": Weight((hidden,), 0.0, start=1.0),
                f"memory_norm_bias_{layer}": Weight((hidden,), 0.0),
            }
        if not self.tie_embeddings:
            weights["output"] = Weight((vocabulary, hidden), scale)
        return weights
