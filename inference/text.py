"""What a sentence model is for: sample, reconstruct, interpolate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data import UNK, Batches, Sentences, Tokeniser
from ..engines.seeds import derive
from ..models.errors import BadInput
from .accounting import each, real
from .decoding import Decoded, decode_scored
from .generated import Interpolation, Reconstructions, Samples
from .strategies import Beam, Greedy, Sample

ROOM = 10
"""Words a reconstruction may be longer than the longest of its sentences."""

_PIECES = re.compile(r"\w+|[^\w\s]")


def sample(
    run: Any,
    count: int = 10,
    *,
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int = 60,
    seed: int = 0,
) -> Samples:
    """Sentences from the model: z ~ p(z), then words by `strategy` (default: sampled as they are)."""
    _refuse_arrays(run, "sample")
    if count < 1:
        raise BadInput(f"{count} samples asked for: at least 1 would be right")
    strategy, latents = strategy or Sample(), None
    if _has_latent(run):
        latents = run.program.prior_draws(run.state, seed=derive(seed, "prior"), rows=count)
    found = _decoded(run, latents, strategy, max_words, seed, count)
    return Samples(_texts(run, found), found.scores.tolist(), strategy.model_dump(), seed)


def reconstruct(
    run: Any,
    sentences: Sequence[str] | None = None,
    *,
    split: str = "test",
    count: int | None = 10,
    latent: str = "mean",
    strategy: Greedy | Sample | Beam | None = None,
    max_words: int | None = None,
    seed: int = 0,
) -> Reconstructions:
    """Sentences through q(z | x) and back, by default greedily from the posterior mean.

    sentences: any text; without it the first `count` of a split (None: all of it).
    latent: "mean" of q(z | x), or one "draw" from it.
    max_words: by default ten more than the longest sentence has.

    Raises:
        BadInput: the run's data are arrays, or it has no latent; a sentence without a word.
    """
    _refuse_without_latent(run, "reconstruct")
    strategy = strategy or Greedy()
    if sentences is None:
        chosen = _of_split(run, split)
        places = range(len(chosen) if count is None else min(count, len(chosen)))
        ids, unknown, sentences = [chosen[i].tolist() for i in places], [], [chosen.text(i) for i in places]
    else:
        ids, unknown = encoded(run, sentences)
    found = _decoded(
        run,
        latents_of(run, ids, latent, seed),
        strategy,
        max_words or max(map(len, ids)) + ROOM,
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
    both ends. An end that is not given is taken from the test split.

    Raises:
        BadInput: as `reconstruct`, or fewer than 2 steps.
    """
    _refuse_without_latent(run, "interpolate")
    if steps < 2:
        raise BadInput(f"an interpolation of {steps} steps has no two ends: at least 2 would be right")
    strategy = strategy or Greedy()
    ends = [end or run.corpus.test.text(min(place, len(run.corpus.test) - 1)) for place, end in enumerate((a, b))]
    ids, unknown = encoded(run, ends)
    start, stop = latents_of(run, ids, "either", seed)
    weights = np.linspace(0.0, 1.0, steps)
    line = (1.0 - weights[:, None]) * start + weights[:, None] * stop
    found = _decoded(run, line, strategy, max_words or max(map(len, ids)) + ROOM, seed)
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


def encoded(run: Any, sentences: Sequence[str]) -> tuple[list[list[int]], list[str]]:
    """Ids of the sentences, and the words that are outside the vocabulary.

    A word that is outside it as written is read as its lower-cased pieces ("File." as "file .") if those are
    inside.
    """
    lower = run.recipe.data.lowercase
    ids, unknown = [], {}
    for sentence in sentences:
        words = (sentence.lower() if lower else sentence).split()
        if not words:
            raise BadInput(f"the sentence {sentence!r} has no word: one or more, separated by blanks, would be right")
        if len(words) > run.recipe.data.max_words:
            limit = run.recipe.data.max_words
            raise BadInput(f"a sentence has {len(words):,} words: at most {limit:,} (data.max_words) would be right")
        read = [_as_known(word, run.tokeniser) for word in words]
        unknown |= dict.fromkeys(word for word in read if _is_unknown(word, run.tokeniser))
        ids.append(run.tokeniser.encode(" ".join(read)))
    return ids, list(unknown)


def _of_split(run: Any, split: str) -> Sentences:
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


def latents_of(run: Any, ids: Sequence[Sequence[int]], latent: str, seed: int) -> np.ndarray:
    """(N, Z): the mean of q(z | x) for each sentence (on a sphere its direction), or one draw from it.

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
    return found


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
}


def _refuse_arrays(run: Any, command: str) -> None:
    if run.pair.steps:
        raise BadInput(
            f"{_name(run)}, whose data are sequences of numbers: {command} {_PURPOSE[command]}, and for sequences there "
            "are generate, forecast, impute and smooth"
        )
    if not run.pair.text:
        raise BadInput(f"{_name(run)}, whose data are arrays: {command} needs a pair of sentences")


def _refuse_without_latent(run: Any, command: str) -> None:
    _refuse_arrays(run, command)
    if not _has_latent(run):
        raise BadInput(f"{_name(run)}, which has no latent: {command} needs one, sample does not")


def _name(run: Any) -> str:
    return f"the run {run.folder} is of the pair {run.pair.name!r}"
