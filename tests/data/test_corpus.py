import gzip

import numpy as np
import pytest

from guidebook.data import BPE, Data, WordPiece, Words, load


def texts(split):
    return {split.text(i) for i in range(len(split))}


def test_equal_sentences_fall_into_one_split(write, lines, cache):
    text = lines(3000, longest=4)
    corpus = load(Data(corpus=write(text * 2)), cache=cache)
    splits = [texts(split) for split in (corpus.train, corpus.valid, corpus.test)]
    assert sum(map(len, splits)) == len(set().union(*splits)) == len(set(text))
    assert sum(map(len, (corpus.train, corpus.valid, corpus.test))) == 6000
    assert abs(len(splits[0]) / len(set(text)) - 0.9) < 5 * np.sqrt(0.09 / len(set(text)))


def test_splits_given_are_kept_in_order(write, lines, cache):
    text = lines(60)
    paths = [write(text[i : i + 20], f"{i}.txt") for i in (0, 20, 40)]
    corpus = load(Data(corpus=paths[0], valid=paths[1], test=paths[2]), cache=cache)
    words = set(" ".join(text[:20]).split())
    for split, part in ((corpus.train, text[:20]), (corpus.valid, text[20:40]), (corpus.test, text[40:])):
        known = [" ".join(word if word in words else "<unk>" for word in line.split()) for line in part]
        assert [split.text(i) for i in range(len(split))] == known
        assert split.lengths.tolist() == [len(line.split()) + 1 for line in part]
        assert split.tokens == sum(split.lengths)
        assert [row.tolist() for row in split] == [corpus.tokeniser.encode(line) for line in part]


@pytest.mark.parametrize("spec", [Words(), BPE(size=270), WordPiece(size=30)], ids=lambda spec: spec.kind)
def test_the_tokeniser_sees_the_training_split_alone(spec, write, lines, cache):
    train = write(lines(100), "train.txt")

    def trained(name, seed):
        other = write([f"Ω{i} secret" for i in range(seed)], name)
        return load(Data(corpus=train, valid=other, test=other, tokeniser=spec), cache=cache).tokeniser

    one = trained("one.txt", 5)
    assert one.fingerprint == trained("two.txt", 9).fingerprint
    assert "secret" not in one.to_json()


def test_the_sorted_index_sorts(write, lines, cache, monkeypatch):
    monkeypatch.setattr("guidebook.data.tokenised._SORTED_AT_ONCE", 37)
    monkeypatch.setattr("guidebook.data.tokenised._CHUNK", 23)
    train = load(Data(corpus=write(lines(500))), cache=cache).train
    assert np.array_equal(train.by_length, np.argsort(train.lengths, kind="stable"))
    assert np.array_equal(train.histogram, np.bincount(train.lengths))
    assert np.array_equal(np.diff(train.offsets) + 1, train.lengths)


def test_lower_case_comes_before_splitting(write, cache):
    text = [f"Word {i} HERE" for i in range(200)] + [f"word {i} here" for i in range(200)]
    corpus = load(Data(corpus=write(text), lowercase=True), cache=cache)
    assert sum(len(texts(split)) for split in (corpus.train, corpus.valid, corpus.test)) <= 200
    assert corpus.tokeniser.decode(corpus.tokeniser.encode("word HERE")) == "word <unk>"


def test_smoke_runs_take_the_first_of_each_split(write, lines, cache):
    path = write(lines(2000))
    whole, few = (load(Data(corpus=path, max_sentences=n), cache=cache) for n in (None, 20))
    for name in ("train", "valid", "test"):
        assert len(getattr(few, name)) == 20
        assert getattr(few, name).lengths.tolist() == getattr(whole, name).lengths[:20].tolist()
    assert few.fingerprint != whole.fingerprint


def test_a_stored_tokeniser_is_used_and_gives_the_same_corpus(write, lines, cache, tmp_path):
    path = write(lines(300))
    first = load(Data(corpus=path, tokeniser=Words(cap=20)), cache=cache)
    first.tokeniser.save(tmp_path / "tokeniser.json")
    again = load(Data(corpus=path), cache=tmp_path / "elsewhere", tokeniser=tmp_path / "tokeniser.json")
    assert again.fingerprint == first.fingerprint
    assert again.tokeniser.size == 20
    assert again.train[3].tolist() == first.train[3].tolist()


def test_other_content_or_tokeniser_is_another_corpus(write, lines, cache):
    path = write(lines(300))
    prints = {
        load(Data(corpus=path, **spec), cache=cache).fingerprint
        for spec in (
            {},
            {"tokeniser": Words(min_count=40)},
            {"tokeniser": BPE(size=300)},
            {"lowercase": True},
        )
    }
    prints.add(load(Data(corpus=write(lines(300, seed=1))), cache=cache).fingerprint)
    assert len(prints) == 5


def test_gzip_marks_and_line_ends_do_not_matter(write, lines, cache):
    text = lines(300)
    forms = [
        "\n".join(text),
        "\ufeff" + "\r\n".join(text) + "\r\n",
        "\n".join(" " + line + "\t" for line in text),
    ]
    contents = [form.encode() for form in forms] + [gzip.compress(forms[0].encode())]
    corpora = [load(Data(corpus=write(c, f"{i}.txt")), cache=cache) for i, c in enumerate(contents)]
    for corpus in corpora[1:]:
        assert np.array_equal(corpus.train.ids, corpora[0].train.ids)
        assert np.array_equal(corpus.train.offsets, corpora[0].train.offsets)


def test_progress_is_told(write, lines, cache):
    told = []
    load(Data(corpus=write(lines(300))), cache=cache, progress=lambda stage, done: told.append((stage, done)))
    assert ("reading words", 0) in told
    assert told[-1] == ("tokenising", 300)


def test_wide_vocabularies_take_wide_ids(write, cache):
    corpus = load(Data(corpus=write([f"word{i} other{i}" for i in range(40_000)])), cache=cache)
    assert corpus.tokeniser.size > 1 << 16
    assert corpus.train.ids.dtype == np.uint32
    last = len(corpus.train) - 1
    assert corpus.train.text(last).startswith("word")


def test_sentences_index_like_a_list(write, lines, cache):
    train = load(Data(corpus=write(lines(300))), cache=cache).train
    assert train[-1].tolist() == train[len(train) - 1].tolist()
    assert train[0].dtype == np.int32
    with pytest.raises(IndexError):
        train[len(train)]
    assert "sentences" in repr(train)
