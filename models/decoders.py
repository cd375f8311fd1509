"""Decoders p(x | z): networks that read the words so far and the latent; the recurrent ones, and `transformers`.

Kim et al. 2018, He et al. 2019, Li et al. 2019: z enters at every input and through the initial state,

    e_t = dropout(embedding(x_{t-1}))            c_0 = W_z z,  h_0 = tanh(c_0)
    h_t = cell([e_t; z], h_{t-1})                x_t ~ Categorical(softmax(W_o dropout(h_t)))

A GRU has the one state h_0 = tanh(W_z z). Without a latent (`language_model`) both start at zero.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from .spec import Spec, Weight
from .transformers import TransformerDecoder


class RecurrentDecoder(Spec):
    """What the LSTM and the GRU decoder share. Sizes from the surroundings: `vocabulary` V, `latent` Z (0: none)."""

    kind: str
    embedding: PositiveInt = Field(default=256, description="E, width of the word embeddings")
    hidden: PositiveInt = Field(default=256, description="H, width of the recurrent state")
    dropout: NonNegativeFloat = Field(
        default=0.5, lt=1, description="on input embeddings and on outputs, in training only"
    )
    tie_embeddings: bool = Field(default=False, description="W_o is the embedding matrix; needs embedding = hidden")
    initial_scale: PositiveFloat = Field(default=0.01, description="weights start uniform in ± this (Li et al.: 0.01)")
    embedding_scale: PositiveFloat = Field(default=0.1, description="embeddings start uniform in ± this")

    @model_validator(mode="after")
    def _tied_widths_agree(self) -> RecurrentDecoder:
        if self.tie_embeddings and self.embedding != self.hidden:
            raise ValueError(f"tie_embeddings needs embedding = hidden, not {self.embedding} and {self.hidden}")
        return self

    def layout(self, *, vocabulary: int, latent: int) -> dict[str, Weight]:
        weights = {"embedding": Weight((vocabulary, self.embedding), self.embedding_scale)}
        weights |= recurrent_layout(self.kind, self.embedding + latent, self.hidden, self.initial_scale)
        if latent:
            weights["initial"] = Weight((self.hidden, latent), self.initial_scale)
        if not self.tie_embeddings:
            weights["output"] = Weight((vocabulary, self.hidden), self.initial_scale)
        return weights


class LSTMDecoder(RecurrentDecoder):
    """The long short-term memory of Hochreiter & Schmidhuber 1997."""

    kind: Literal["lstm"] = "lstm"


class GRUDecoder(RecurrentDecoder):
    """The gated recurrent unit of Cho et al. 2014."""

    kind: Literal["gru"] = "gru"


def recurrent_layout(kind: str, inputs: int, hidden: int, scale: float) -> dict[str, Weight]:
    """Weights of one recurrent layer: gates i, f, g, o for the LSTM (one bias), r, z, n for the GRU (two)."""
    gates = {"lstm": 4, "gru": 3}[kind] * hidden
    weights = {
        "weight_ih": Weight((gates, inputs), scale),
        "weight_hh": Weight((gates, hidden), scale),
        "bias_ih": Weight((gates,), scale),
    }
    return weights if kind == "lstm" else weights | {"bias_hh": Weight((gates,), scale)}


Decoder = Annotated[LSTMDecoder | GRUDecoder | TransformerDecoder, Field(discriminator="kind")]
