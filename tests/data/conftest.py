"""Small corpora with known contents, and a cache of their own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from guidebook.data import Sentences, WordTokeniser

WORDS = [f"w{i}" for i in range(60)]


def make_lines(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    """Distinct-ish sentences of 1 … `longest` words, frequent words first."""
    rng = random.Random(seed)
    return [
        " ".join(WORDS[int(len(WORDS) * rng.random() ** 2)] for _ in range(rng.randint(1, longest)))
        for _ in range(count)
    ]


@pytest.fixture
def lines():
    return make_lines


@pytest.fixture
def write(tmp_path: Path):
    def write(lines: list[str] | bytes, name: str = "corpus.txt") -> str:
        path = tmp_path / name
        path.write_bytes(lines if isinstance(lines, bytes) else ("\n".join(lines) + "\n").encode())
        return str(path)

    return write


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def split():
    """A split in memory from lines of text."""

    def split(lines: list[str]) -> Sentences:
        tokeniser = WordTokeniser.train(lines)
        return Sentences.of(tokeniser.encode_many(lines), tokeniser)

    return split
