"""How words are chosen from a decoder, as frozen specs. `decoding.decode` realises them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from ..models.errors import BadInput
from ..models.spec import Spec
from .mistakes import sentence


class DecodingStrategy(Spec):
    """What all strategies share. The padding and the begin mark are never emitted, whatever the strategy."""

    kind: str
    allow_unknown: bool = Field(default=True, description="whether unk may be emitted")


class Greedy(DecodingStrategy):
    """The most probable word at every step; of equally probable ones the lowest id."""

    kind: Literal["greedy"] = "greedy"


class Sample(DecodingStrategy):
    """Ancestral sampling from softmax(logits / temperature), restricted to the `top_k` most probable words,
    then to the smallest set of them that holds the probability `top_p` (nucleus sampling, Holtzman et al.
    2020)."""

    kind: Literal["sample"] = "sample"
    temperature: PositiveFloat = Field(default=1.0, description="1: the model's own; towards 0: greedy")
    top_k: PositiveInt | None = Field(default=None, description="only so many words; None: all")
    top_p: float | None = Field(
        default=None, gt=0, le=1, description="only a set of words of this probability; None: all"
    )


class Beam(DecodingStrategy):
    """Beam search for the most probable sentence, ranked by log p / ((5 + T) / 6)^length_penalty over its T
    words and end mark (Wu et al. 2016, equation 14)."""

    kind: Literal["beam"] = "beam"
    width: PositiveInt = Field(default=5, le=1000, description="K, prefixes kept at every step")
    length_penalty: NonNegativeFloat = Field(
        default=0.0, description="0: plain log-probability; more favours long sentences"
    )


Strategy = Annotated[Greedy | Sample | Beam, Field(discriminator="kind")]


def strategy_of(
    kind: Literal["greedy", "sample", "beam"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    width: int = 5,
) -> Strategy:
    """The strategy of this kind, from the settings that are its own.

    Raises:
        BadInput: one of them is wrong.
    """
    try:
        if kind == "sample":
            return Sample(temperature=temperature, top_k=top_k, top_p=top_p)
        return Beam(width=width) if kind == "beam" else Greedy()
    except ValidationError as error:
        raise BadInput(sentence(Sample if kind == "sample" else Beam, error)) from None
