"""Perplexity of sentences under a language model, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import Batches, Sentences
from ..models.errors import BadInput
from .accounting import account
from .metrics import perplexity
from .run import EVALUATION_ROWS
from .tables import number
from .text import refuse_arrays


@dataclass(frozen=True)
class Perplexity:
    """exp(Σ −log p(x_n) / Σ T_n), T_n the words of sentence n and its end mark.

    standard_error: over sentences, by the delta method; None of a single one. tokens: Σ T_n.
    """

    value: float
    standard_error: float | None
    sentences: int
    tokens: int

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {number(self.standard_error, 2)}"
        return f"{number(self.value, 2)}{error}"


def perplexity_of(nll: np.ndarray, tokens: np.ndarray) -> Perplexity:
    """From −log p of each sentence in nats and its predicted tokens, both (N,).

    The rate R = Σ nll / Σ T is a ratio of means: Var R ≈ Var(nll − R T) / (N T̄²), and the error of exp R is exp R times
    that of R.
    """
    count, total = len(nll), int(tokens.sum())
    value, error = perplexity(float(nll.mean()), count, total), None
    if count > 1:
        residual = nll - nll.sum() / total * tokens
        error = float(value * residual.std(ddof=1) * count**0.5 / total)
    return Perplexity(value, error, count, total)


def perplexity_under(language_model: Any, sentences: Sequence[Sequence[int]] | Sentences) -> Perplexity:
    """Of sentences as token ids of the language model's own tokeniser; exact, for it has no latent."""
    if not isinstance(sentences, Sentences):
        sentences = Sentences.of(sentences, language_model.tokeniser)
    batches = Batches(sentences, batch_size=EVALUATION_ROWS, buckets=language_model.recipe.data.buckets, shuffle=False)
    found = account(language_model.program, language_model.state, batches, seed=0)
    return perplexity_of(found.reconstruction, np.asarray(sentences.lengths)[found.rows])


def refuse_no_judge(run: Any, language_model: Any) -> None:
    """
    Raises:
        BadInput: one of the two is not of sentences, the judge has a latent, or they do not share their vocabulary.
    """
    refuse_arrays(run, "judge")
    pair = language_model.pair
    if not pair.text or pair.guide is not None:
        raise BadInput(
            f"the run {language_model.folder} is of the pair {pair.name!r}, whose likelihood of a sentence is not known "
            "exactly: a run of the pair 'language_model' would be right"
        )
    if run.tokeniser.fingerprint != language_model.tokeniser.fingerprint:
        raise BadInput(
            f"{run.folder} ({run.tokeniser.size:,} ids) and {language_model.folder} ({language_model.tokeniser.size:,} ids) "
            "differ in their vocabulary: a language model fitted with the same data.corpus and data.tokeniser would be right"
        )
