"""What a sentence model is for: sample, reconstruct, interpolate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np

from ..data import UNK, Batches, Sentences, Tokeniser
from ..engines.seeds import derive
from ..models.errors import BadInput
from .accounting import each, real
from .decoding import Decoded, decode_scored
from .generated import Interpolation, Reconstructions, Samples
from .measures import line, prior_draws, prior_of, pruned, stacked
from .strategies import Beam, Greedy, Sample

LONGEST = 60
"""Words of a sample, at most."""

ROOM = 10
"""Words a reconstruction may be longer than the longest of its sentences."""

_PIECES = re.compile(r"\w+|[^\w\s]")


def sample(
    run: Any,
    count: int = 10,
    *,
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int | None = None,
    words: int | None = None,
    seed: int = 0,
) -> Samples:
    """Sentences from the model: z ~ p(z), then words by `strategy` (default: sampled as they are).

    words: n of a pair whose prior hangs on it, end mark included, in place of a draw from p(n).
    max_words: by default 60, or `words` where those are more.
    """
    strategy = strategy or Sample()
    longest = max(LONGEST, words if isinstance(words, Integral) else 0) if max_words is None else max_words
    found = drawn(run, count, strategy, longest, seed, words)
    return Samples(_texts(run, found), found.scores.tolist(), strategy.model_dump(), seed)


def drawn(
    run: Any, count: int, strategy: Greedy | Sample | Beam, max_words: int, seed: int, words: int | None = None
) -> Decoded:
    """What `sample` draws, as token ids."""
    refuse_arrays(run, "sample")
    if count < 1:
        raise BadInput(f"{count} samples asked for: at least 1 would be right")
    if words is not None and not prior_of(run):
        raise BadInput(f"{_name(run)}, whose prior does not hang on the number of words: leave words out")
    latents = None
    if prior_of(run):
        latents = prior_draws(run, count, seed, words)
    elif _has_latent(run):
        latents = run.program.prior_draws(run.state, seed=derive(seed, "prior"), rows=count)
    return _decoded(run, latents, strategy, max_words, seed, count)


def reconstruct(
    run: Any,
    sentences: Sequence[str] | None = None,
    *,
    split: str = "test",
    count: int | None = 10,
    latent: str = "mean",
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int | None = None,
    keep: float = 1.0,
    seed: int = 0,
) -> Reconstructions:
    """Sentences through q(z | x) and back, by default greedily from the posterior mean.

    sentences: any text; without it the first `count` of a split (None: all of it).
    latent: "mean" of q(z | x), or one "draw" from it, or "either", the mean where the family has one in closed form.
    keep: of a random measure, only the heaviest components, as many as hold this share of its weight.
    max_words: by default ten more than the longest sentence has.

    Raises:
        BadInput: the run's data are arrays, or it has no latent; a sentence without a word.
    """
    refuse_without_latent(run, "reconstruct")
    strategy = strategy or Greedy()
    if sentences is None:
        chosen = of_split(run, split)
        places = range(len(chosen) if count is None else min(count, len(chosen)))
        ids, unknown, sentences = [chosen[i].tolist() for i in places], [], [chosen.text(i) for i in places]
    else:
        ids, unknown = encoded(run, sentences)
    if not ids:
        raise BadInput("there is no sentence to reconstruct: one or more would be right")
    latents, latent = latents_of(run, ids, latent, seed)
    if keep != 1:
        if not (prior := prior_of(run)) or not prior.weighted:
            raise BadInput(f"{_name(run)}, whose latents have no weights: leave keep out")
        latents = pruned(latents, keep)
    found = _decoded(
        run,
        latents,
        strategy,
        max(map(len, ids)) + ROOM if max_words is None else max_words,
        seed,
    )
    seen, texts = [run.tokeniser.decode(one) for one in ids], _texts(run, found)
    bleu, signature = corpus_bleu(texts, seen)
    return Reconstructions(
        sentences=list(sentences),
        seen=seen,
        reconstructions=texts,
        scores=found.scores.tolist(),
        latent=latent,
        bleu=bleu,
        bleu_signature=signature,
        exact=float(np.mean([a == b for a, b in zip(ids, found.sentences, strict=True)])),
        unknown=unknown,
        strategy=strategy.model_dump(),
        seed=seed,
    )


def interpolate(
    run: Any,
    a: str | None = None,
    b: str | None = None,
    steps: int = 7,
    *,
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int | None = None,
    seed: int = 0,
) -> Interpolation:
    """Sentences along the straight line between the posterior means of `a` and `b`: `steps` of them, with
    both ends. Of random measures, along the mixtures of both. An end that is not given is taken from the test split.

    Raises:
        BadInput: as `reconstruct`, or fewer than 2 steps.
    """
    refuse_without_latent(run, "interpolate")
    if steps < 2:
        raise BadInput(f"an interpolation of {steps} steps has no two ends: at least 2 would be right")
    strategy = strategy or Greedy()
    test = run.corpus.test
    ends = [test.text(min(place, len(test) - 1)) if end is None else end for place, end in enumerate((a, b))]
    ids, unknown = encoded(run, ends)
    weights = np.linspace(0.0, 1.0, steps)
    longest = max(map(len, ids)) + ROOM if max_words is None else max_words
    found = between(run, ids[:1], ids[1:], weights, strategy, longest, seed)
    seen = [run.tokeniser.decode(one) for one in ids]
    return Interpolation(
        a=seen[0],
        b=seen[1],
        weights=weights.tolist(),
        sentences=_texts(run, found),
        scores=found.scores.tolist(),
        unknown=unknown,
        strategy=strategy.model_dump(),
        seed=seed,
    )


def between(
    run: Any,
    starts: Sequence[Sequence[int]],
    stops: Sequence[Sequence[int]],
    weights: np.ndarray,
    strategy: Greedy | Sample | Beam,
    max_words: int,
    seed: int,
) -> Decoded:
    """Sentences along the straight lines between the posterior means of `starts` and `stops`, both as token ids: pair
    by pair, one for each of the weights of the stop. Of random measures, along the mixtures of both."""
    refuse_without_latent(run, "interpolate")
    ends, _ = latents_of(run, [*starts, *stops], "either", seed)
    pairs = zip(ends[: len(starts)], ends[len(starts) :], strict=True)
    if prior := prior_of(run):
        lines = [one for start, stop in pairs for one in line(start, stop, weights, prior.weighted)]
        return _decoded(run, stacked(lines), strategy, max_words, seed)
    lines = [np.outer(1.0 - weights, start) + np.outer(weights, stop) for start, stop in pairs]
    return _decoded(run, np.concatenate(lines), strategy, max_words, seed)


def encoded(run: Any, sentences: Sequence[str]) -> tuple[list[list[int]], list[str]]:
    """Ids of the sentences, and the words that are outside the vocabulary.

    A word that is outside it as written is read as its lower-cased pieces ("File." as "file .") if those are
    inside.
    """
    lower, longest = run.recipe.data.lowercase, getattr(getattr(run.recipe, "model", None), "longest", None)
    ids, unknown = [], {}
    for sentence in sentences:
        if isinstance(sentences, str) or not isinstance(sentence, str):
            raise BadInput(f"sentences are strings in a list, not {sentences!r}")
        words = (sentence.lower() if lower else sentence).split()
        if not words:
            raise BadInput(f"the sentence {sentence!r} has no word: one or more, separated by blanks, would be right")
        if len(words) > run.recipe.data.max_words:
            limit = run.recipe.data.max_words
            raise BadInput(f"a sentence has {len(words):,} words: at most {limit:,} (data.max_words) would be right")
        read = [_as_known(word, run.tokeniser) for word in words]
        unknown |= dict.fromkeys(word for word in read if _is_unknown(word, run.tokeniser))
        ids.append(run.tokeniser.encode(" ".join(read)))
        if longest is not None and len(ids[-1]) >= longest:
            raise BadInput(
                f"a sentence has {len(ids[-1]) + 1:,} {run.tokeniser.unit}s with its end mark: at most {longest:,} "
                "(model.longest) would be right"
            )
    return ids, list(unknown)


def of_split(run: Any, split: str) -> Sentences:
    if split not in ("train", "valid", "test"):
        raise BadInput(f"there is no split {split!r}: choose one of train, valid, test")
    return getattr(run.corpus, split)


def _as_known(word: str, tokeniser: Tokeniser) -> str:
    if not _is_unknown(word, tokeniser):
        return word
    pieces = " ".join(_PIECES.findall(word.lower()))
    return pieces if pieces and UNK not in tokeniser.encode(pieces) else word


def _is_unknown(word: str, tokeniser: Tokeniser) -> bool:
    return word != "<unk>" and UNK in tokeniser.encode(word)


class _NoMean(BadInput):
    """A posterior without a mean in closed form."""


_SPHERICAL = ("VonMisesFisher", "PowerSpherical")


def latents_of(run: Any, ids: Sequence[Sequence[int]], latent: str, seed: int) -> tuple[np.ndarray, str]:
    """(N, Z): the mean of q(z | x) for each sentence (on a sphere its direction), or one draw from it; and which, "mean" or
    "draw". Of what a decoder attends to, measures (N, K, W).

    "either": the mean where the family has one in closed form.
    """
    if latent == "either":
        try:
            return latents_of(run, ids, "mean", seed)
        except _NoMean:
            return latents_of(run, ids, "draw", seed)
    if latent not in ("mean", "draw"):
        raise BadInput(f"latent {latent!r} is not known: 'mean' of q(z | x) or one 'draw' from it")
    batches = Batches(Sentences.of(ids, run.tokeniser), batch_size=min(32, len(ids)), shuffle=False)
    if prior_of(run):
        return _measures_of(run, batches, latent, seed), latent
    found = None
    for number, batch in enumerate(each(batches)):
        if latent == "mean":
            q = _only(run.program.posterior(run.state, batch))
            z = q.loc / np.linalg.norm(q.loc, axis=-1, keepdims=True) if q.family in _SPHERICAL else q.loc
        else:
            key = derive(seed, "reconstruct", number)
            z = _only(run.program.draws(run.state, batch, seed=key, particles=1))[0]
        found = np.empty((len(ids), z.shape[-1])) if found is None else found
        found[batch["index"][real(batch)]] = z[real(batch)]
    if found is None or not np.isfinite(found).all():
        raise _NoMean("q(z | x) has no known mean: reconstruct from a draw (latent 'draw')")
    return found, latent


def _measures_of(run: Any, batches: Batches, latent: str, seed: int) -> np.ndarray:
    found: dict[int, np.ndarray] = {}
    for number, batch in enumerate(each(batches)):
        if latent == "mean":
            measures = run.program.mean_measures(run.state, batch)["F"]
        else:
            key = derive(seed, "reconstruct", number)
            measures = run.program.draws(run.state, batch, seed=key, particles=1)["F"][0]
        keep = real(batch)
        found |= dict(zip(batch["index"][keep].tolist(), measures[keep], strict=True))
    return stacked([found[row] for row in range(len(found))])


def _only(sites: dict[str, Any]) -> Any:
    if len(sites) != 1:
        raise BadInput(f"decoding takes one latent per sentence, this pair has {', '.join(sites) or 'none'}")
    return next(iter(sites.values()))


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """BLEU-4 of whole corpora, blanks separating the tokens as they are, and sacrebleu's signature of it."""
    from sacrebleu.metrics.bleu import BLEU  # here: it is slow to import, and most commands do without

    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return float(score), str(metric.get_signature())


def sentence_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """BLEU of each sentence (0 … 100), of n-grams up to 4 or as long as the sentence has words (effective order)."""
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", force=True, effective_order=True)
    return [
        float(metric.sentence_score(hypothesis, [reference]).score)
        for hypothesis, reference in zip(hypotheses, references, strict=True)
    ]


def _decoded(run, latents, strategy, max_words, seed, count=None) -> Decoded:
    return decode_scored(
        run.program,
        run.state,
        latents,
        strategy,
        max_words=max_words,
        seed=derive(seed, "decode"),
        count=count,
    )


def _texts(run: Any, found: Decoded) -> list[str]:
    return [run.tokeniser.decode(words) for words in found.sentences]


def _has_latent(run: Any) -> bool:
    return run.pair.guide is not None


_PURPOSE = {
    "sample": "draws sentences",
    "reconstruct": "sends sentences through the latent and back",
    "interpolate": "walks from one sentence to another",
    "judge": "reads sentences",
}


def refuse_arrays(run: Any, command: str) -> None:
    if run.pair.steps:
        raise BadInput(
            f"{_name(run)}, whose data are sequences of numbers: {command} {_PURPOSE[command]}, and for sequences there "
            "are generate, forecast, impute and smooth"
        )
    if not run.pair.text:
        raise BadInput(f"{_name(run)}, whose data are arrays: {command} needs a pair of sentences")


def refuse_without_latent(run: Any, command: str) -> None:
    refuse_arrays(run, command)
    if not _has_latent(run):
        raise BadInput(f"{_name(run)}, which has no latent: {command} needs one, sample does not")


def _name(run: Any) -> str:
    return f"the run {run.folder} is of the pair {run.pair.name!r}"
