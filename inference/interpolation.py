"""Interpolation between many pairs of sentences, as curves over the weight of the second.

Henderson & Fehr 2023, section 5: a smooth latent space leaves the first end and comes to the second by degrees, and
says something new, and fluent, between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Sentences
from ..engines.seeds import derive
from ..models.errors import BadInput
from .generated import describe
from .perplexities import Perplexity, perplexity_under, refuse_no_judge
from .strategies import Beam, Greedy, Sample
from .tables import html_table, number, text_table
from .text import ROOM, between, of_split, refuse_without_latent, sentence_bleu

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class InterpolationCurve:
    """Means over pairs of sentences a, b, for each weight of b.

    Attributes:
        weights: from 0, the reconstruction of a, to 1, that of b.
        bleu_a, bleu_b: mean BLEU of sentences (0 … 100) to a and to b as the model reads them.
        novel: share of outputs that are neither end nor the reconstruction of one.
        perplexity: of the novel outputs at weight 0.5 under a language model; None without one, or without any.
        about: pair, engine, split, seed.
    """

    weights: list[float]
    bleu_a: list[float]
    bleu_b: list[float]
    novel: list[float]
    perplexity: Perplexity | None
    pairs: int
    strategy: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    header = ("weight of b", "BLEU to a", "BLEU to b", "novel")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what `about` holds stands first."""
        found = asdict(self)
        return {**found.pop("about"), **found}

    def rows(self) -> list[tuple[str, ...]]:
        curves = zip(self.weights, self.bleu_a, self.bleu_b, self.novel, strict=True)
        return [(f"{weight:.2f}", number(a, 1), number(b, 1), f"{new:.0%}") for weight, a, b, new in curves]

    def picture(self) -> Figure:
        """BLEU to either end, and the share of novel outputs."""
        from . import figures

        return figures.interpolation(self.title, self.weights, {"a": self.bleu_a, "b": self.bleu_b}, self.novel)

    @property
    def title(self) -> str:
        fluent = "" if self.perplexity is None else f"; perplexity {self.perplexity} of what is novel at 0.50"
        return f"interpolation between {self.pairs:,} pairs, {describe(dict(self.strategy))}{fluent}"

    def __repr__(self) -> str:
        return f"{self.title}\n{text_table([self.header, *self.rows()], right=range(4))}"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.title}</b></p>{html_table(self.rows(), self.header, numbers=range(4))}"


def interpolation_curve(
    run: Any,
    *,
    pairs: int = 100,
    steps: int = 5,
    split: str = "test",
    strategy: Greedy | Sample | Beam | None = None,
    language_model: Any = None,
    max_words: int | None = None,
    seed: int = 0,
) -> InterpolationCurve:
    """`interpolate` between random pairs of sentences of a split, the two of a pair of different lengths.

    steps: weights from 0 to 1, an odd number, so that 0.5 is one. language_model: a run of the pair language_model.

    Raises:
        BadInput: as `interpolate` and `judge_samples`; all sentences of the split have one length.
    """
    refuse_without_latent(run, "interpolate")
    if pairs < 1:
        raise BadInput(f"{pairs} pairs asked for: at least 1 would be right")
    if steps < 3 or steps % 2 == 0:
        raise BadInput(f"a curve of {steps} steps has no middle: 3, 5 or another odd number would be right")
    if language_model is not None:
        refuse_no_judge(run, language_model)
    strategy, sentences, weights = strategy or Greedy(), of_split(run, split), np.linspace(0.0, 1.0, steps)
    a, b = _pairs(sentences, pairs, derive(seed, "pairs"), split)
    starts, stops = ([sentences[i].tolist() for i in chosen] for chosen in (a, b))
    longest = max(map(len, starts + stops)) + ROOM if max_words is None else max_words
    found = between(run, starts, stops, weights, strategy, longest, seed).sentences
    outputs = [found[pair * steps : (pair + 1) * steps] for pair in range(pairs)]
    novel = np.array(
        [
            [output not in (start, stop, line[0], line[-1]) for output in line]
            for start, stop, line in zip(starts, stops, outputs, strict=True)
        ]
    )
    middle = [line[steps // 2] for line, new in zip(outputs, novel[:, steps // 2], strict=True) if new]
    bleu = [_bleu(run.tokeniser, outputs, end).mean(0).tolist() for end in (starts, stops)]
    return InterpolationCurve(
        weights=weights.tolist(),
        bleu_a=bleu[0],
        bleu_b=bleu[1],
        novel=novel.mean(0).tolist(),
        perplexity=perplexity_under(language_model, middle) if language_model is not None and middle else None,
        pairs=pairs,
        strategy=strategy.model_dump(),
        about={"pair": run.pair.name, "engine": run.recipe.engine, "split": split, "seed": seed},
    )


def _pairs(sentences: Sentences, count: int, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions (count,) of the first and of the second sentences: any two whose lengths differ."""
    lengths, rng = np.asarray(sentences.lengths), np.random.default_rng(seed)
    if (lengths == lengths[0]).all():
        raise BadInput(f"all sentences of the {split} split have {lengths[0] - 1} words: two lengths would be right")
    first = rng.integers(len(lengths), size=count)
    second = rng.integers(len(lengths), size=count)
    while (same := lengths[first] == lengths[second]).any():
        first[same], second[same] = (rng.integers(len(lengths), size=same.sum()) for _ in range(2))
    return first, second


def _bleu(tokeniser: Any, outputs: list[list[list[int]]], ends: list[list[int]]) -> np.ndarray:
    """(pairs, steps): of every output of a line to the end of its pair."""
    return np.array(
        [
            sentence_bleu([tokeniser.decode(output) for output in line], [tokeniser.decode(end)] * len(line))
            for line, end in zip(outputs, ends, strict=True)
        ]
    )
