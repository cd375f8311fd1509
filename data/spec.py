"""The `[data]` table of a recipe: which sentences, and how they become token ids."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

NAMED = ("stdlib_docs", "ptb", "wikitext2")
"""Corpora that go by a name; each has its own splits and is in lower case."""


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Words(_Spec):
    """One id per blank-separated word, the most frequent words first."""

    kind: Literal["words"] = "words"
    min_count: int = Field(default=1, ge=1, description="rarer words of the training split become unk")
    cap: int | None = Field(default=None, ge=1, description="at most this many ids, the 4 special tokens included")


class BPE(_Spec):
    """Byte-level byte-pair encoding: no text is unknown."""

    kind: Literal["bpe"] = "bpe"
    size: int = Field(default=8000, ge=1, description="at most this many ids: 4 special tokens, 256 bytes, then merges")


class WordPiece(_Spec):
    """Word pieces, continuations marked `##`: a word with an unseen character becomes unk."""

    kind: Literal["word_piece"] = "word_piece"
    size: int = Field(default=8000, ge=1, description="at most so many ids, special tokens included")


TokeniserSpec = Annotated[Words | BPE | WordPiece, Field(discriminator="kind")]


class Data(_Spec):
    """What a recipe says about its data; `guidebook.data.load` realises it.

    A text file is UTF-8 (gzip allowed) with one sentence a line, words separated by blanks. Without
    `valid` and `test` it is split 90/5/5 by a hash of each sentence, so that equal sentences fall into
    one split.
    """

    corpus: str = Field(
        default="stdlib_docs", description='"stdlib_docs", "ptb", "wikitext2" or the path of a text file'
    )
    valid: str | None = Field(
        default=None, description="path of the validation sentences; `corpus` is then all training"
    )
    test: str | None = Field(default=None, description="path of the test sentences; goes together with `valid`")
    tokeniser: TokeniserSpec = Words()
    lowercase: bool = Field(default=False, description="lower-case first (the named corpora already are)")
    buckets: int = Field(default=8, ge=1, description="at most this many padded lengths: JAX compiles once for each")
    max_words: int = Field(default=1000, ge=1, description="a longer line is refused, never cut or dropped")
    max_sentences: int | None = Field(
        default=None, ge=1, description="only so many sentences of each split, for smoke runs"
    )

    @model_validator(mode="after")
    def _splits_are_whole(self) -> Data:
        if (self.valid is None) != (self.test is None):
            raise ValueError("valid and test go together: give both paths, or neither to split the corpus by hash")
        if self.valid is not None and self.corpus in NAMED:
            raise ValueError(f"corpus {self.corpus!r} has its own splits: leave valid and test out")
        return self
