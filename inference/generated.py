"""Sentences that a run has made, for people (`repr`, notebooks) and for programs (`to_dict`)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .tables import html_table, text_table


class _Result:
    """What the results share: a title and a table of strings."""

    title: str
    header: tuple[str, ...]

    def rows(self) -> list[tuple[str, ...]]:
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)  # pyright: ignore[reportArgumentType]

    def __repr__(self) -> str:
        header = [self.header] if any(self.header) else []
        return f"{self.title}\n{text_table([*header, *self.rows()], right=())}"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.title}</b></p>{html_table(self.rows(), self.header)}"


@dataclass(frozen=True, repr=False)
class Samples(_Result):
    """Sentences from the model: z from the prior where there is a latent, then words by the strategy.

    scores: log p(x | z) of each, in nats.
    """

    sentences: list[str]
    scores: list[float]
    strategy: dict[str, Any]
    seed: int

    header = ("log p(x | z)", "sentence")

    @property
    def title(self) -> str:
        return f"{len(self.sentences)} samples from the prior, {describe(self.strategy)}"

    def rows(self) -> list[tuple[str, ...]]:
        return [(f"{score:.1f}", text) for score, text in zip(self.scores, self.sentences, strict=True)]


@dataclass(frozen=True, repr=False)
class Reconstructions(_Result):
    """Sentences through the latent and back.

    Attributes:
        sentences: as given.
        seen: as the model reads them, words outside the vocabulary as `<unk>`.
        reconstructions: decoded from `latent`, the mean of q(z | x) or one draw from it ("mean", "draw").
        scores: log p(reconstruction | z) in nats.
        bleu: corpus BLEU-4 (0 … 100) of the reconstructions against `seen`.
        bleu_signature: how it was computed (sacrebleu).
        exact: share of sentences that came back word for word.
        unknown: the words that became `<unk>`.
    """

    sentences: list[str]
    seen: list[str]
    reconstructions: list[str]
    scores: list[float]
    latent: str
    bleu: float
    bleu_signature: str
    exact: float
    unknown: list[str]
    strategy: dict[str, Any]
    seed: int

    header = ("", "")

    @property
    def source(self) -> str:
        """Which latent was decoded, in words."""
        return {"mean": "the posterior mean", "draw": "a draw from the posterior"}[self.latent]

    @property
    def title(self) -> str:
        unknown = f"; outside the vocabulary: {', '.join(self.unknown)}" if self.unknown else ""
        return (
            f"{len(self.sentences)} reconstructions from {self.source}, "
            f"{describe(self.strategy)}: BLEU {self.bleu:.1f}, {self.exact:.0%} exact{unknown}"
        )

    def rows(self) -> list[tuple[str, ...]]:
        pairs = zip(self.seen, self.reconstructions, strict=True)
        return [row for seen, back in pairs for row in (("x", seen), ("→", back))]


@dataclass(frozen=True, repr=False)
class Interpolation(_Result):
    """Sentences along the straight line between the means of q(z | a) and q(z | b).

    weights: of b, from 0 to 1. unknown: the words of a and b that became `<unk>`.
    """

    a: str
    b: str
    weights: list[float]
    sentences: list[str]
    scores: list[float]
    unknown: list[str]
    strategy: dict[str, Any]
    seed: int

    header = ("weight of b", "sentence")

    @property
    def title(self) -> str:
        unknown = f"; outside the vocabulary: {', '.join(self.unknown)}" if self.unknown else ""
        return f"from a to b in {len(self.weights)} steps, {describe(self.strategy)}{unknown}"

    def rows(self) -> list[tuple[str, ...]]:
        between = [(f"{w:.2f}", text) for w, text in zip(self.weights, self.sentences, strict=True)]
        return [("a", self.a), *between, ("b", self.b)]


def describe(strategy: dict[str, Any]) -> str:
    """A strategy in a few words: `beam, width 5`."""
    given = [f"{key.replace('_', ' ')} {value}" for key, value in strategy.items() if _says_something(key, value)]
    unknown = [] if strategy.get("allow_unknown", True) else ["no unk"]
    return ", ".join([strategy["kind"], *given, *unknown])


def _says_something(key: str, value: Any) -> bool:
    return key not in ("kind", "allow_unknown") and value is not None and not (key == "length_penalty" and not value)
