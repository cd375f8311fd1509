"""WikiText (Merity et al. 2017): one paragraph a line, cut into sentences here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .errors import BadData
from .textfile import sentences_of

_END, _QUOTE = {".", "!", "?"}, '"'
_NO_END = {",", ";", ":"}
_NEVER_FIRST = {*_END, *_NO_END, ")", "]", "'", "’", "”"}
_LONGEST_PARAGRAPH = 10_000


def wikitext_sentences(path: Path, max_words: int) -> Iterator[str]:
    """The sentences of every paragraph; an empty line gives "", and a heading (` = Title = `) gives nothing.

    BadData as `sentences_of`, for a sentence of more than `max_words` words.
    """
    for number, paragraph in enumerate(sentences_of(path, _LONGEST_PARAGRAPH), 1):
        words = paragraph.split()
        if len(words) > 1 and words[0] == words[-1] == "=":
            continue
        if not words:
            yield ""
        for sentence in _cut(words):
            if len(sentence) > max_words:
                raise BadData(
                    f"line {number} of {path} has a sentence of {len(sentence):,} words, more than data.max_words = "
                    f"{max_words:,}: raise data.max_words"
                )
            yield " ".join(sentence)


def _cut(words: list[str]) -> Iterator[list[str]]:
    """A sentence ends after . ! or ? and the closing quote or bracket behind it, unless the next word cannot begin one:
    it is in lower case, or a mark. Quotes are alike on both sides: every second one of a paragraph closes."""
    start, quoted, ended = 0, False, False
    for place, word in enumerate(words):
        closes = word in _NEVER_FIRST or (word == _QUOTE and quoted)
        if ended and not closes and not word[0].islower():
            yield words[start:place]
            start = place
        ended = word in _END or (ended and closes and word not in _NO_END)
        quoted ^= word == _QUOTE
    if start < len(words):
        yield words[start:]
