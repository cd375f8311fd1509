"""One id per blank-separated word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from .errors import BadData
from .spec import Words
from .tokenisers import SPECIAL, UNK, Tokeniser, check_distinct

_DISTINCT_WORDS_HELD = 5_000_000  # about half a gigabyte of counts


class WordTokeniser(Tokeniser, kinds=["words"]):
    """Blank-separated words. The text's own `<unk>` is unk; its `<pad>`, `<bos>`, `<eos>` become unk too."""

    unit = "word"
    kind = "words"

    def __init__(self, words: Sequence[str]) -> None:
        """words: the ordinary words in order of their ids, which start at 4."""
        self.words = [*SPECIAL, *words]
        self._ids = {word: i for i, word in enumerate(self.words) if i > UNK}

    @classmethod
    def train(cls, sentences: Iterable[str], spec: Words | None = None) -> WordTokeniser:
        """The vocabulary of `sentences`: by falling count, ties by spelling. BadData when nothing is left."""
        spec = spec or Words()
        counts = _count(sentences)
        check_distinct(seen := len(counts))
        words = sorted((w for w, n in counts.items() if n >= spec.min_count), key=lambda w: (-counts[w], w))
        if len(words) < 2:
            raise BadData(
                f"tokeniser.min_count = {spec.min_count} leaves {len(words)} of {seen} words "
                f"(the most frequent occurs {max(counts.values())} times): a smaller one would be right"
            )
        if spec.cap is not None and spec.cap < len(SPECIAL) + 2:
            raise BadData(
                f"tokeniser.cap = {spec.cap} has no room for 2 words beside the 4 special tokens: take at least 6"
            )
        return cls(words if spec.cap is None else words[: spec.cap - len(SPECIAL)])

    @property
    def size(self) -> int:
        return len(self.words)

    def encode(self, sentence: str) -> list[int]:
        return [self._ids.get(word, UNK) for word in sentence.split()]

    def encode_many(self, sentences: Sequence[str]) -> list[list[int]]:
        get = self._ids.get
        return [[get(word, UNK) for word in sentence.split()] for sentence in sentences]

    def _decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)

    def _contents(self) -> dict:
        return {"words": self.words[len(SPECIAL) :]}

    @classmethod
    def _restore(cls, contents: dict) -> WordTokeniser:
        return cls(contents["words"])


def _count(sentences: Iterable[str]) -> Counter[str]:
    """Word counts. Beyond five million distinct words the rarest are forgotten: then lower bounds."""
    counts: Counter[str] = Counter()
    floor = 0
    for sentence in sentences:
        counts.update(sentence.split())
        while len(counts) > _DISTINCT_WORDS_HELD:
            floor += 1
            counts = Counter({word: n for word, n in counts.items() if n > floor})
    for special in SPECIAL:
        del counts[special]
    return counts
