"""Every way a text can be wrong ends in one sentence: what, where, and what would be right."""

import gzip
import os

import pytest

from guidebook.data import BadData, Data, Words, load

FINE = [f"sentence number {i} is here" for i in range(200)]
PACKED = gzip.compress("\n".join(FINE).encode(), mtime=0)  # a parameter, so the same in every process


def refused(path, cache, **spec):
    with pytest.raises(BadData) as error:
        load(Data(corpus=str(path), **spec), cache=cache)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "nothing in it"),
        (b"\n \n\t\n", "only empty lines (3)"),
        (b"a fine line\nab\0cd\n", "line 2 of"),
        (bytes(range(1, 256)) * 10, "is not UTF-8"),
        ("a fine line\nun café noir\n".encode("latin-1"), "byte 7 of line 2"),
        ("a line".encode("utf-16"), "is UTF-16 text"),
        (b"one two three\n", "the train split of|the valid split of"),
        (PACKED[:60], "damaged gzip file"),
        (PACKED[:-4] + b"\1\1\1\1", "damaged gzip file"),
        (PACKED[:30] + b"garbage" + PACKED[37:], "damaged gzip file"),
    ],
)
def test_a_file_that_is_no_text(content, says, write, cache):
    message = refused(path := write(content), cache)
    assert any(part in message for part in says.split("|"))
    assert path in message
    assert not list(cache.glob("corpus-*"))


def test_a_missing_file(tmp_path, cache):
    assert "there is no file" in refused(tmp_path / "none.txt", cache)
    assert "did you mean 'stdlib_docs'?" in refused("stdlib_doc", cache)


def test_a_missing_split(tmp_path, write, cache):
    path = write(FINE)
    assert "there is no file" in refused(path, cache, valid=path, test=str(tmp_path / "none.txt"))
    assert "has only empty lines" in refused(path, cache, valid=path, test=write(["", ""], "test.txt"))


def test_a_folder_or_a_pipe(tmp_path, cache):
    assert "is a folder" in refused(tmp_path, cache)
    os.mkfifo(tmp_path / "pipe")
    assert "is no ordinary file" in refused(tmp_path / "pipe", cache)


def test_a_name_that_promises_gzip(write, cache):
    assert "is named .gz but is no gzip file" in refused(write(FINE, "text.gz"), cache)


def test_gzip_needs_no_name(write, cache):
    assert len(load(Data(corpus=write(PACKED)), cache=cache).train) > 100


def test_arrays_are_not_sentences(write, cache):
    assert "native pair" in refused(write(b"PK", "data.npz"), cache)


def test_a_long_line_is_named_not_cut(write, cache):
    path = write([*FINE, " ".join(["word"] * 1001)])
    assert "line 201" in (message := refused(path, cache))
    assert "1,001 words, more than data.max_words = 1,000" in message
    assert len(load(Data(corpus=path, max_words=1001), cache=cache).train) > 100
    assert "max_words = 1,000" in refused(path, cache)  # though the cache has it for 1001


def test_a_line_of_a_million_words_is_refused_unread(write, cache):
    assert "line 2 of" in (message := refused(write(["fine", "word " * 1_000_000]), cache))
    assert "more than data.max_words" in message
    assert "line 1 of" in refused(write(["é" * 1_000_000], "letters.txt"), cache)


def test_a_vocabulary_of_nothing(write, cache):
    assert "distinct words" in refused(write(["same same"] * 50), cache)
    assert "min_count" in refused(write(FINE), cache, tokeniser=Words(min_count=10_000))
    assert "cap = 4" in refused(write(FINE), cache, tokeniser=Words(cap=4))


def test_empty_lines_are_counted_not_sentences(write, cache):
    corpus = load(Data(corpus=write(["", *FINE, "  ", ""])), cache=cache)
    assert corpus.empty_lines == 3
    assert sum(map(len, (corpus.train, corpus.valid, corpus.test))) == len(FINE)


def test_a_cache_that_cannot_be_written(write, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refused(write(FINE), tmp_path / "file" / "cache")
    assert "cannot be written" in message
    assert "GUIDEBOOK_CACHE" in message


def test_ptb_without_its_files(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path / "nowhere"))
    assert "GUIDEBOOK_DATA" in refused("ptb", cache)
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    assert "ptb.train.txt.gz" in refused("ptb", cache)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"valid": "v.txt"}, "go together"),
        ({"corpus": "ptb", "valid": "v.txt", "test": "t.txt"}, "has its own splits"),
        ({"tokeniser": {"kind": "letters"}}, "letters"),
        ({"buckets": 0}, "buckets"),
        ({"corpse": "ptb"}, "corpse"),
    ],
)
def test_a_table_that_makes_no_sense(spec, says):
    with pytest.raises(ValueError, match=says):
        Data(**spec)
