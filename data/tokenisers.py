"""Sentences to token ids and back. Ids 0 … 3 are pad, bos, eos, unk in every tokeniser."""

from __future__ import annotations

import hashlib
import itertools
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .errors import BadData
from .spec import BPE, TokeniserSpec, WordPiece, Words

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")

_FORMAT = 1
_DISTINCT_WORDS_HELD = 5_000_000  # about half a gigabyte of counts


class Tokeniser(ABC):
    """What the models see of a language: `size` ids, and the unit that a perplexity is per."""

    unit: ClassVar[str]
    kind: str

    @property
    @abstractmethod
    def size(self) -> int:
        """V, the special tokens included."""

    @abstractmethod
    def encode(self, sentence: str) -> list[int]:
        """Ids of one sentence, without bos and eos. The sentence's blanks are taken as single ones."""

    @abstractmethod
    def encode_many(self, sentences: Sequence[str]) -> list[list[int]]:
        """`encode` of each sentence."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Text of ids among which there is no pad, bos or eos."""

    @abstractmethod
    def _contents(self) -> dict:
        """What `_restore` needs, as JSON."""

    @classmethod
    @abstractmethod
    def _restore(cls, contents: dict) -> Tokeniser: ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first eos; pad and bos leave no trace, unk is written `<unk>`."""
        kept = []
        for i in map(int, ids):
            if i == EOS:
                break
            if i not in (PAD, BOS):
                kept.append(i)
        return self._decode(kept)

    def to_json(self) -> str:
        return json.dumps({"format": _FORMAT, "kind": self.kind, **self._contents()}, ensure_ascii=False)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides its ids."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write as JSON text; `Tokeniser.load` reads it back."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @staticmethod
    def load(path: str | Path) -> Tokeniser:
        """Any tokeniser that was saved. BadData if the file is missing, cut short or of a newer version."""
        try:
            contents = json.loads(Path(path).read_text(encoding="utf-8"))
            if contents["format"] > _FORMAT:
                raise BadData(
                    f"{path} is a tokeniser of a newer Guidebook (format {contents['format']}): "
                    "upgrade to read it"
                )
            return _KINDS[contents["kind"]]._restore(contents)
        except OSError as error:
            raise BadData(
                f"the tokeniser {path} cannot be read ({error.strerror}): a saved one would be right"
            ) from error
        except BadData:
            raise
        except Exception as error:  # the Rust tokenisers raise bare Exception
            raise BadData(f"{path} is not a saved tokeniser: {type(error).__name__}: {error}") from error

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size:,} ids, unit {self.unit!r})"


class WordTokeniser(Tokeniser):
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
        _check_distinct(seen := len(counts))
        words = sorted((w for w, n in counts.items() if n >= spec.min_count), key=lambda w: (-counts[w], w))
        if len(words) < 2:
            raise BadData(
                f"tokeniser.min_count = {spec.min_count} leaves {len(words)} of {seen} words "
                f"(the most frequent occurs {max(counts.values())} times): a smaller one would be right"
            )
        if spec.cap is not None and spec.cap < len(SPECIAL) + 2:
            raise BadData(
                f"tokeniser.cap = {spec.cap} has no room for 2 words beside the 4 special tokens: "
                "take at least 6"
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


class SubwordTokeniser(Tokeniser):
    """Byte-level BPE or word pieces, by `tokenizers`. No text is taken for pad, bos or eos."""

    unit = "subword"

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        tokenizer.encode_special_tokens = True  # "<eos>" in a sentence is five characters, not its end
        self._tokenizer, self.kind = tokenizer, kind

    @classmethod
    def train(cls, sentences: Iterable[str], spec: BPE | WordPiece) -> SubwordTokeniser:
        """The pieces of `sentences`. BadData if `size` has no room for the alphabet, or for a single word."""
        if iter(sentences) is sentences:  # they are read more than once
            sentences = list(sentences)
        _check_distinct(len(set(itertools.islice(_distinct_words(sentences), 2))))
        tokenizer = (_byte_pairs if isinstance(spec, BPE) else _word_pieces)(sentences, spec.size)
        found = tokenizer.get_vocab_size()
        if found > spec.size:
            raise BadData(
                f"tokeniser.size = {spec.size} is smaller than the alphabet and special tokens: "
                f"take more than {found}"
            )
        return cls(tokenizer, spec.kind)

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def encode(self, sentence: str) -> list[int]:
        return self.encode_many([sentence])[0]

    def encode_many(self, sentences: Sequence[str]) -> list[list[int]]:
        plain = [" ".join(sentence.split()) for sentence in sentences]
        encodings = self._tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        return [[i if i > UNK else UNK for i in encoding.ids] for encoding in encodings]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False).strip()

    def _contents(self) -> dict:
        return {"tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def _restore(cls, contents: dict) -> SubwordTokeniser:
        return cls(Tokenizer.from_str(json.dumps(contents["tokenizer"])), contents["kind"])


_KINDS: dict[str, type[Tokeniser]] = {
    "words": WordTokeniser,
    "bpe": SubwordTokeniser,
    "word_piece": SubwordTokeniser,
}


def train_tokeniser(sentences: Iterable[str], spec: TokeniserSpec) -> Tokeniser:
    """The tokeniser that `spec` describes, from the training sentences."""
    if isinstance(spec, Words):
        return WordTokeniser.train(sentences, spec)
    return SubwordTokeniser.train(sentences, spec)


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


def _distinct_words(sentences: Iterable[str]) -> Iterator[str]:
    seen = {SPECIAL[UNK]}
    for sentence in sentences:
        yield from (new := set(sentence.split()) - seen)
        seen |= new


def _check_distinct(words: int) -> None:
    if words < 2:
        raise BadData(
            f"the training sentences have {words} distinct words beside <unk>: at least 2 would be right"
        )


def _byte_pairs(sentences: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # A blank in front makes the first word the same pieces as any other.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    _train(tokenizer, trainer, sentences)
    return tokenizer


def _word_pieces(sentences: Iterable[str], size: int) -> Tokenizer:
    # The trainer numbers continuations in the order of a randomly seeded hash map, and breaks ties by number:
    # only with all of them given beforehand is the result the same every time.
    continuations = [f"##{letter}" for letter in _alphabet(sentences)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *continuations], min_frequency=2, show_progress=False
    )
    trained = _blank_separated({})
    _train(trained, trainer, sentences)
    return _blank_separated(trained.get_vocab())


def _blank_separated(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _alphabet(sentences: Iterable[str]) -> list[str]:
    letters: set[str] = set()
    for sentence in sentences:
        letters.update(sentence)
    return sorted(letter for letter in letters if not letter.isspace())


def _train(tokenizer: Tokenizer, trainer: trainers.Trainer, sentences: Iterable[str]) -> None:
    errors: list[BadData] = []

    def until_an_error() -> Iterator[str]:
        try:
            yield from sentences
        except BadData as error:  # the trainer would rename it
            errors.append(error)

    tokenizer.train_from_iterator(until_an_error(), trainer)
    if errors:
        raise errors[0]
