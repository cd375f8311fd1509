"""Encoders: networks that read a whole sentence, from bos to eos, into one vector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ..models.decoders import recurrent_layout
from ..models.spec import Spec, Weight
from ..models.transformers import Transformer


class RecurrentEncoder(Spec):
    """One layer, one direction. Size from the surroundings: `vocabulary` V.

    The code is the state after eos, or the mean or maximum of the states after every token, pads left out.
    """

    kind: str
    embedding: PositiveInt = Field(default=256, description="E, width of the word embeddings")
    hidden: PositiveInt = Field(default=256, description="H, width of the recurrent state")
    pooling: Literal["last", "mean", "max"] = Field(default="last", description="which states make the code")
    initial_scale: PositiveFloat = Field(default=0.01, description="weights start uniform in ± this (Li et al.: 0.01)")
    embedding_scale: PositiveFloat = Field(default=0.1, description="embeddings start uniform in ± this")

    @property
    def features(self) -> int:
        return self.hidden

    def layout(self, *, vocabulary: int) -> dict[str, Weight]:
        embedding = {"embedding": Weight((vocabulary, self.embedding), self.embedding_scale)}
        return embedding | recurrent_layout(self.kind, self.embedding, self.hidden, self.initial_scale)


class LSTMEncoder(RecurrentEncoder):
    """The long short-term memory of Hochreiter & Schmidhuber 1997."""

    kind: Literal["lstm"] = "lstm"


class GRUEncoder(RecurrentEncoder):
    """The gated recurrent unit of Cho et al. 2014."""

    kind: Literal["gru"] = "gru"


class _Reader(Transformer):
    """A Transformer over tokens."""

    def layout(self, *, vocabulary: int) -> dict[str, Weight]:
        return {"embedding": Weight((vocabulary, self.hidden), self.hidden**-0.5)} | self.blocks()


class TransformerEncoder(_Reader):
    """Reads in both directions. Size from the surroundings: `vocabulary` V. The code is the mean or the maximum of the
    outputs, pads left out, or the one at eos.
    """

    pooling: Literal["last", "mean", "max"] = Field(default="mean", description="which outputs make the code")

    @property
    def features(self) -> int:
        return self.hidden


class VectorEncoder(_Reader):
    """Reads in both directions, and gives a vector for each token. Size from the surroundings: `vocabulary` V."""

    positions: Literal["rotary", "sinusoidal"] = "sinusoidal"

    def block(self) -> MeasureBlock:
        """One more block like its own, which reads a measure."""
        return MeasureBlock.model_validate(self.model_dump() | {"layers": 1})


class MeasureBlock(Transformer):
    """A block of queries from h, and keys and values from the atoms of a random measure F, for denoising attention. Size
    from the surroundings: `latent` p. It reads in both directions, and no positions: atoms have none.

    As it ends, with a norm, an encoder's blocks do. A bias of the keys would change nothing.
    """

    def layout(self, *, latent: int) -> dict[str, Weight]:
        hidden = self.hidden
        weights = self.blocks()
        del weights["attention_in_0"], weights["attention_in_bias_0"]
        return weights | {
            "query": Weight((hidden, hidden), hidden**-0.5),
            "query_bias": Weight((hidden,), 0.0),
            "key": Weight((hidden, latent), latent**-0.5),
            "value": Weight((hidden, latent), latent**-0.5),
            "value_bias": Weight((hidden,), 0.0),
        }


Encoder = Annotated[LSTMEncoder | GRUEncoder | TransformerEncoder, Field(discriminator="kind")]


class _Backward(Spec):
    """b_t, the state of a recurrent layer after it has read e_T … e_t. Size from the surroundings: `inputs`."""

    kind: str
    hidden: PositiveInt = Field(default=128, description="H, width of the recurrent state")

    def layout(self, *, inputs: int) -> dict[str, Weight]:
        return recurrent_layout(self.kind, inputs, self.hidden, self.hidden**-0.5)


class LSTMBackward(_Backward):
    """By the LSTM."""

    kind: Literal["lstm"] = "lstm"


class GRUBackward(_Backward):
    """By the GRU."""

    kind: Literal["gru"] = "gru"


Backward = Annotated[LSTMBackward | GRUBackward, Field(discriminator="kind")]
