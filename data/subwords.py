"""Byte pairs and word pieces, by the `tokenizers` library."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .errors import BadData
from .spec import BPE, WordPiece
from .tokenisers import SPECIAL, UNK, Tokeniser, check_distinct


class SubwordTokeniser(Tokeniser, kinds=["bpe", "word_piece"]):
    """Byte-level BPE or word pieces. No text is taken for pad, bos or eos."""

    unit = "subword"

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        tokenizer.encode_special_tokens = True  # "<eos>" in a sentence is five characters, not its end
        self._tokenizer, self.kind = tokenizer, kind

    @classmethod
    def train(cls, sentences: Iterable[str], spec: BPE | WordPiece) -> SubwordTokeniser:
        """The pieces of `sentences`. BadData if `size` has no room for the alphabet, or for a single word."""
        if iter(sentences) is sentences:  # they are read more than once
            sentences = list(sentences)
        check_distinct(len(set(itertools.islice(_distinct_words(sentences), 2))))
        tokenizer = (_byte_pairs if isinstance(spec, BPE) else _word_pieces)(sentences, spec.size)
        found = tokenizer.get_vocab_size()
        if found > spec.size:
            raise BadData(
                f"tokeniser.size = {spec.size} is smaller than the alphabet and special tokens: take more than {found}"
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


def _distinct_words(sentences: Iterable[str]) -> Iterator[str]:
    seen = {SPECIAL[UNK]}
    for sentence in sentences:
        yield from (new := set(sentence.split()) - seen)
        seen |= new


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
