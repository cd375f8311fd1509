"""What a nonparametric bottleneck keeps of one sentence, and what reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data import Batches, Sentences
from ..models.errors import BadInput
from .accounting import each
from .generated import _Result
from .measures import KEPT_FROM, prior_of
from .text import encoded

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Bottleneck(_Result):
    """What a bottleneck keeps of one sentence.

    tokens: as the encoder reads them, the end mark last. pseudo_counts: α of each. prior: α of the prior component. counted:
    whether they are known, and not up to a factor alone, as under an empirical prior.
    attention: (layers, heads, words and end mark, 1 + tokens) what each decoded word weighs the prior component and the tokens by.
    """

    tokens: list[str]
    pseudo_counts: np.ndarray
    prior: float
    attention: np.ndarray
    counted: bool = True

    header = ("token", "pseudo-count", "kept", "attention to it", "its own to the prior component")

    @property
    def kept(self) -> np.ndarray | None:
        """Of each token; None where its pseudo-count is not known."""
        return self.pseudo_counts > KEPT_FROM if self.counted else None

    @property
    def title(self) -> str:
        counts = f"pseudo-counts {self.pseudo_counts.sum():.1f} + {self.prior:.1f}"
        if self.kept is None:
            return f"{len(self.tokens)} vectors, {counts} up to a factor"
        return f"{self.kept.sum()} of {len(self.tokens)} vectors kept, {counts}"

    def rows(self) -> list[tuple[str, ...]]:
        mean = self.attention.mean((0, 1))
        kept = ["–"] * len(self.tokens) if self.kept is None else ["yes" if one else "" for one in self.kept]
        columns = zip(self.tokens, self.pseudo_counts, kept, mean[:, 1:].mean(0), mean[:, 0], strict=True)
        return [(t, f"{a:.3f}", k, f"{to:.2f}", f"{own:.2f}") for t, a, k, to, own in columns]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "tokens": self.tokens,
            "pseudo_counts": self.pseudo_counts.tolist(),
            "prior": self.prior,
            "attention": self.attention.tolist(),
        }

    def picture(self) -> Figure:
        """Pseudo-counts over the sentence, and beneath what each decoded word attends to."""
        from . import figures

        return figures.bottleneck(self.tokens, self.pseudo_counts, self.prior, self.attention.mean((0, 1)))


def bottleneck(run: Any, sentence: str) -> Bottleneck:
    """What a run with a Dirichlet process for its posterior keeps of a sentence."""
    prior = prior_of(run)
    if prior is None or not prior.weighted:
        raise BadInput(
            f"the run {run.folder} has no pseudo-counts: a run of the pair 'nvae' with a Dirichlet process has"
        )
    (ids,), _ = encoded(run, [sentence])
    (batch,) = each(Batches(Sentences.of([ids], run.tokeniser), batch_size=1, shuffle=False))
    measures = run.program.mean_measures(run.state, batch)["F"]
    words = len(ids) + 1
    alpha = np.exp(measures[0, : words + 1, 0])
    attention = run.program.attention(run.state, batch, measures)[:, 0, :, :words, : words + 1]
    tokens = [*(run.tokeniser.decode([one]) for one in ids), "⏎"]
    return Bottleneck(tokens, alpha[1:], float(alpha[0]), attention, not run.recipe.model.prior.empirical)
