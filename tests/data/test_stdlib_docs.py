import os
import subprocess
import sys
from pathlib import Path

import pytest

from guidebook.data import BadData, Data, load, stdlib_sentences
from guidebook.data.stdlib_docs import MAX_WORDS, MIN_WORDS, sentences_in, stdlib_docs_file

MARKS = set(",;:.!?")


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Return the value, if any. Raise KeyError if it's missing!", 2),
        ("Return the current position", 1),
        ("Read from the ``_io.BytesIO`` object `x.read_all()` (see below).", 1),
        ("The result is\nspread over lines.\n\n>>> f(1)\nThe one.", 1),
        ("Title\n=====\n\nfile -- the path to read.\n\n    x = the_value_of(1) + 2.", 0),
        ("See https://docs.python.org for the details.", 0),
        ("Return a tuple (a, b).", 0),
        ("Too short.", 0),
        ("name   type   what it is for.", 0),
        ("* The first item is a sentence.\n* The second is one too.", 2),
        ("The options are:", 0),
    ],
)
def test_what_reads_as_english_is_kept(text, sentences):
    assert len(list(sentences_in(text))) == sentences


def test_names_become_words():
    text = "Call ``os.path.is_file()`` or the __len__ method (never both), e.g. on a *Path*."
    assert list(sentences_in(text)) == ["call is file or the len method , eg on a path ."]


def test_the_corpus_is_large_clean_and_split(cache):
    corpus = load(Data(), cache=cache)
    splits = [[split.text(i) for i in range(len(split))] for split in (corpus.train, corpus.valid, corpus.test)]
    file = stdlib_docs_file(cache).read_text(encoding="utf-8").splitlines()
    assert 9_000 < len(file) == len(set(file)) == sum(map(len, splits)) < 15_000
    assert set(splits[0]) <= set(file)
    for sentence in file:
        words = [token for token in sentence.split(" ") if token not in MARKS]
        assert MIN_WORDS <= len(words) <= MAX_WORDS
        assert sentence == sentence.lower()
        assert sentence[-1] in ".!?"
        assert not set('()[]{}<>=_`\\@#"') & set(sentence)


def test_neither_hash_seed_nor_order_of_files_matters():
    paths = sorted(Path(os.__file__).parent.glob("[a-d]*.py"))
    program = (
        "import sys, pathlib; from guidebook.data import stdlib_sentences;"
        "print(*stdlib_sentences(map(pathlib.Path, sys.argv[:0:-1])), sep='\\n')"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert result.stdout.splitlines() == stdlib_sentences(paths)


def test_a_python_without_sources_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("guidebook.data.stdlib_docs.sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(BadData, match="without the source of its standard library"):
        load(Data(), cache=tmp_path / "cache")
