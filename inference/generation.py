"""Sentences that a model draws, judged by language models that have no latent.

Forward perplexity (Zhao et al. 2018; Fang et al. 2019): of the samples under a language model of the real text; low
where samples are fluent, lowest where they are all the same. Reverse perplexity: of real text under a language model of
the samples; low only where samples cover it. Both judges see a sentence through its words so far alone: a model that is
told the sentence, such as an autoencoder, measures its own reconstruction instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data import Corpus, Sentences
from ..models.errors import BadInput
from .checkpoint import refuse_other_settings
from .datasets import TextData
from .fit import Fitting
from .generated import describe
from .perplexities import Perplexity, perplexity_under, refuse_no_judge
from .progress import display
from .run import Run
from .strategies import Beam, Greedy, Sample
from .tables import html_table, number, text_table
from .text import drawn, of_split

HELD_OUT = 10
"""Of so many samples one is kept from the reverse language model, to choose its weights by."""


@dataclass(frozen=True, repr=False)
class Judgement:
    """What samples are worth.

    Attributes:
        forward: of the samples under the language model. real: of the split under it, the scale of `forward`.
        reverse: of the split under a language model of the same recipe and seed that saw samples alone; None: not asked
            for. With fewer samples than there are training sentences it is above `real` even of a perfect model.
        reverse_steps: that the reverse language model was trained for.
        distinct: share of different sentences among the samples. seen: share that are sentences of the training data.
        empty: share without a word.
        length, data_length: mean words of a sample and of a sentence of the split, end marks not counted.
        unit: of the tokens that perplexities and lengths count. about: where the numbers come from.
    """

    forward: Perplexity
    real: Perplexity
    reverse: Perplexity | None
    reverse_steps: int | None
    distinct: float
    seen: float
    empty: float
    length: float
    data_length: float
    unit: str
    strategy: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what `about` holds stands first."""
        found = asdict(self)
        return {**found.pop("about"), **found}

    def rows(self) -> list[tuple[str, str, str]]:
        """What, how much, of what: the table for people."""
        split = self.about.get("split", "real")
        rows = [
            (
                "forward perplexity",
                str(self.forward),
                f"of the samples, {self.forward.tokens:,} {self.unit}s with end marks",
            ),
            ("perplexity of real text", str(self.real), f"of the {split} split, under the same language model"),
        ]
        if self.reverse is not None:
            trained = f"under one trained on the samples, {self.reverse_steps:,} steps"
            rows.append(("reverse perplexity", str(self.reverse), f"of the {split} split, {trained}"))
        return [
            *rows,
            ("distinct", f"{self.distinct:.1%}", "of the samples"),
            ("in the training data", f"{self.seen:.1%}", "of the samples"),
            ("empty", f"{self.empty:.1%}", "of the samples"),
            ("length", number(self.length, 2), f"{self.unit}s; {number(self.data_length, 2)} of the {split} split"),
        ]

    @property
    def title(self) -> str:
        about = " · ".join(str(self.about[key]) for key in ("pair", "engine") if key in self.about)
        return f"{about + ': ' if about else ''}{self.forward.sentences:,} samples, {describe(dict(self.strategy))}"

    def __repr__(self) -> str:
        return f"Judgement of {self.title}\n{text_table(self.rows())}"

    def _repr_html_(self) -> str:
        return f"<p><b>{self.title}</b></p>{html_table(self.rows(), ('', 'value', ''), numbers=(1,))}"


def judge_samples(
    run: Any,
    language_model: Any,
    *,
    count: int = 1000,
    split: str = "test",
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int | None = None,
    seed: int = 0,
    reverse_steps: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Judgement:
    """Exactly `count` samples of a run of sentences under `language_model`, a run of the pair language_model.

    max_words: no sample gets more; by default the words of the longest training sentence.
    reverse_steps: of the language model of the samples; None: as many as `language_model` took; 0: no reverse
        perplexity. The training costs what that of `language_model` did, and is the cost of the call.
    out: folder where that language model is kept, and gone on with after an interruption; None: it is not kept.
    progress: of that training, as `fit` has it.

    Raises:
        BadInput: a judge with a latent, or of another vocabulary; too few samples to train on.
    """
    refuse_no_judge(run, language_model)
    strategy, real = strategy or Sample(), of_split(run, split)
    steps = _steps_of(language_model) if reverse_steps is None else reverse_steps
    if steps:
        _refuse_few(count, language_model)
    longest = max(int(np.max(run.corpus.train.lengths)) - 1, 1) if max_words is None else max_words
    samples = drawn(run, count, strategy, longest, seed).sentences
    reverse, taken = _reverse(language_model, samples, real, steps, out, progress) if steps else (None, None)
    return Judgement(
        forward=perplexity_under(language_model, samples),
        real=perplexity_under(language_model, real),
        reverse=reverse,
        reverse_steps=taken,
        distinct=len(set(map(tuple, samples))) / count,
        seen=_share_seen(samples, run.corpus.train),
        empty=float(np.mean([not sample for sample in samples])),
        length=float(np.mean([len(sample) for sample in samples])),
        data_length=real.tokens / len(real) - 1.0,
        unit=run.tokeniser.unit,
        strategy=strategy.model_dump(),
        about={
            "pair": run.pair.name,
            "engine": run.recipe.engine,
            "split": split,
            "seed": seed,
            "language_model": str(language_model.folder),
            "language_model_seed": language_model.recipe.fit.seed,
        },
    )


def _share_seen(samples: Sequence[Sequence[int]], train: Iterable[np.ndarray]) -> float:
    """One pass over the training sentences, with memory for the samples alone."""
    asked = set(map(tuple, samples))
    found = {words for words in (tuple(sentence.tolist()) for sentence in train) if words in asked}
    return float(np.mean([tuple(sample) in found for sample in samples]))


def _steps_of(language_model: Any) -> int:
    steps = [line["step"] for line in language_model.lines]
    if not steps:
        raise BadInput(f"{language_model.folder} does not say how long it was trained: say reverse_steps")
    return max(steps)


def _refuse_few(count: int, language_model: Any) -> None:
    rows = language_model.recipe.fit.batch_size
    least = -(-rows * HELD_OUT // (HELD_OUT - 1))
    if count < max(least, 2):
        raise BadInput(
            f"{count} samples are too few to train a language model on with batches of {rows}: at least {max(least, 2)}, or no "
            "reverse perplexity (reverse_steps = 0), would be right"
        )


def _reverse(
    language_model: Any,
    samples: Sequence[Sequence[int]],
    real: Sentences,
    steps: int,
    out: str | Path | None,
    progress: bool | None,
) -> tuple[Perplexity, int]:
    """Of `real` under a language model of the samples, and the steps that it took: fewer where its recipe stops early.

    Recipe, seed and vocabulary are those of `language_model`, so that no real word has probability zero; the weights
    that the recipe selects are the best on samples held out.
    """
    recipe = language_model.recipe
    fit = recipe.fit.model_copy(update={"epochs": steps, "max_steps": steps})  # an epoch is a step or more
    recipe = recipe.model_copy(update={"fit": fit})
    data = TextData(recipe.data, corpus=_corpus_of(samples, language_model.tokeniser))
    with (
        TemporaryDirectory() if out is None else nullcontext(out) as name,
        display(progress, kept=out is not None) as show,
    ):
        folder = Path(name)
        if exists := (folder / "recipe.toml").exists():
            refuse_other_settings(folder, recipe, language_model.pair)
        fitted: Run = Fitting(recipe, language_model.pair, data, folder, language_model.device, show, exists).run()
        return perplexity_under(fitted, real), _steps_of(fitted)


def _corpus_of(samples: Sequence[Sequence[int]], tokeniser: Any) -> Corpus:
    held_out = max(1, len(samples) // HELD_OUT)
    valid, train = (Sentences.of(part, tokeniser) for part in (samples[:held_out], samples[held_out:]))
    digest = hashlib.blake2b(tokeniser.fingerprint.encode(), digest_size=16)
    for part in (valid, train):
        digest.update(part.offsets.tobytes() + part.ids.tobytes())
    return Corpus("samples", tokeniser, train, valid, valid, digest.hexdigest(), 0)
