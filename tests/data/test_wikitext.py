"""WikiText: where paragraphs are cut, and the counts of WikiText-2 in sentences."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from guidebook.data import UNK, BadData, Data, data_folder, load
from guidebook.data.wikitext import wikitext_sentences


@pytest.mark.parametrize(
    ("paragraph", "sentences"),
    [
        (" He ran . She <unk> ! <unk> did 2 . 3 too \n", ["He ran .", "She <unk> !", "<unk> did 2 .", "3 too"]),
        ('" Go ! " he said . " Now . " They went ( soon . ) Then', ['" Go ! " he said .', '" Now . "', "They went ( soon . )", "Then"]),
        ('It was " big . Very big . " They left .', ['It was " big .', 'Very big . "', "They left ."]),
        ("Wait . . . for Foo Inc . , which ended . the end", ["Wait . . . for Foo Inc . , which ended . the end"]),
        (" = = Heading = = \n", []),
        (" = \n", ["="]),
        (" \n", [""]),
    ],
)  # fmt: skip
def test_where_a_sentence_ends(paragraph, sentences, write):
    path = Path(write(["Something .", paragraph.strip("\n")]))
    assert list(wikitext_sentences(path, 100)) == ["Something .", *sentences]


def test_a_sentence_that_is_too_long_is_refused(write):
    path = Path(write(["", "A b c d . E f ."]))
    assert list(wikitext_sentences(path, 5)) == ["", "A b c d .", "E f ."]
    with pytest.raises(BadData, match=r"line 2 of .* a sentence of 5 words, more than data\.max_words = 4"):
        list(wikitext_sentences(path, 4))


def test_wikitext_without_its_files(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    with pytest.raises(BadData, match=r"wiki\.train\.txt\.gz, which is missing: one paragraph a line"):
        load(Data(corpus="wikitext2"), cache=cache)


def test_a_small_one_is_read_cut_and_lower_cased(tmp_path, cache, monkeypatch):
    (tmp_path / "wikitext2").mkdir()
    for split in ("train", "valid", "test"):
        text = f" \n = Title = \n \n The {split} ran . It <unk> . \n"
        (tmp_path / "wikitext2" / f"wiki.{split}.txt.gz").write_bytes(gzip.compress(text.encode()))
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    corpus = load(Data(corpus="wikitext2"), cache=cache)
    assert [corpus.train.text(i) for i in range(len(corpus.train))] == ["the train ran .", "it <unk> ."]
    assert corpus.test[1].tolist()[1] == UNK
    assert corpus.empty_lines == 6


@pytest.mark.skipif(
    data_folder() is None or not (data_folder() / "wikitext2").is_dir(),
    reason="WikiText-2 is not here (GUIDEBOOK_DATA)",
)
def test_no_word_is_lost_or_made(cache):
    """Against the words of the lines that are no headings, counted without cutting."""
    corpus = load(Data(corpus="wikitext2"), cache=cache)
    for split in ("valid", "test"):
        with gzip.open(data_folder() / "wikitext2" / f"wiki.{split}.txt.gz", "rt", encoding="utf-8") as lines:
            kept = [line.split() for line in lines if not (line.startswith(" = ") and line.endswith(" = \n"))]
        sentences = getattr(corpus, split)
        assert sentences.tokens - len(sentences) == sum(map(len, kept))
    assert [len(split) for split in (corpus.train, corpus.valid, corpus.test)] == [76_177, 7_989, 9_312]
