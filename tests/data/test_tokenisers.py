import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidebook.data import (
    BOS,
    BPE,
    EOS,
    PAD,
    SPECIAL,
    UNK,
    BadData,
    SubwordTokeniser,
    Tokeniser,
    WordPiece,
    Words,
    WordTokeniser,
    train_tokeniser,
)

LINES = ["the cat sat on the mat", "the dog sat on the log", "a cat and a dog", "the log"] * 5
SPECS = [Words(), BPE(size=300), WordPiece(size=60)]
BYTE_PAIRS = train_tokeniser(LINES, BPE(size=300))


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_known_text_survives_the_round_trip(spec):
    tokeniser = train_tokeniser(LINES, spec)
    for line in LINES[:4]:
        ids = tokeniser.encode(line)
        assert tokeniser.decode(ids) == line
        assert min(ids) > UNK
        assert max(ids) < tokeniser.size
    assert tokeniser.encode_many(LINES) == [tokeniser.encode(line) for line in LINES]
    assert tokeniser.unit == ("word" if spec.kind == "words" else "subword")


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_saved_tokeniser_is_the_same(spec, tmp_path):
    tokeniser = train_tokeniser(LINES, spec)
    tokeniser.save(tmp_path / "tokeniser.json")
    loaded = Tokeniser.load(tmp_path / "tokeniser.json")
    assert type(loaded) is type(tokeniser)
    assert loaded.fingerprint == tokeniser.fingerprint
    assert loaded.encode_many([*LINES, "unseen zebra"]) == tokeniser.encode_many([*LINES, "unseen zebra"])


@given(st.text(max_size=40))
def test_byte_pairs_lose_no_text_but_its_blanks(text):
    ids = BYTE_PAIRS.encode(text)
    assert BYTE_PAIRS.decode(ids) == " ".join(text.split())
    assert UNK not in ids


@given(st.lists(st.sampled_from(["the", "cat", "zebra", *SPECIAL]), max_size=9))
def test_words_outside_the_vocabulary_are_unknown(words):
    tokeniser = WordTokeniser.train(LINES)
    expected = [word if word in ("the", "cat") else "<unk>" for word in words]
    assert tokeniser.decode(tokeniser.encode(" ".join(words))) == " ".join(expected)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_no_text_is_taken_for_a_mark(spec):
    ids = train_tokeniser(LINES, spec).encode("the <eos> cat <pad> <bos>")
    assert not {PAD, BOS, EOS} & set(ids)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_decoding_ends_at_eos_and_shows_no_marks(spec):
    tokeniser = train_tokeniser(LINES, spec)
    ids = tokeniser.encode("the cat")
    assert tokeniser.decode(np.array([BOS, *ids, EOS, *ids, PAD])) == "the cat"
    assert "<unk>" in tokeniser.decode([*ids, UNK])


def test_the_vocabulary_is_by_count_then_spelling():
    tokeniser = WordTokeniser.train(["b b a a c"])
    assert tokeniser.words == [*SPECIAL, "a", "b", "c"]
    assert WordTokeniser.train(["b b a a c"], Words(min_count=2)).words == [*SPECIAL, "a", "b"]
    assert WordTokeniser.train(["b b a a c"], Words(cap=6)).size == 6


def test_the_vocabulary_does_not_depend_on_the_order_of_the_text():
    assert WordTokeniser.train(LINES).words == WordTokeniser.train(LINES[::-1]).words


@pytest.mark.parametrize("spec", [Words(), BPE(size=300), WordPiece(size=60)], ids=lambda spec: spec.kind)
def test_training_again_gives_the_same(spec):
    assert len({train_tokeniser(LINES, spec).fingerprint for _ in range(5)}) == 1


def test_a_huge_vocabulary_forgets_the_rarest(monkeypatch):
    from guidebook.data import words

    monkeypatch.setattr(words, "_DISTINCT_WORDS_HELD", 100)
    rare = (f"r{i}" for i in range(5000))
    tokeniser = WordTokeniser.train(f"often also {word}" for word in rare)
    assert tokeniser.words[4:6] == ["also", "often"]
    assert tokeniser.size <= 104


@pytest.mark.parametrize(
    ("lines", "spec", "says"),
    [
        (["a a a"], Words(), "1 distinct words beside <unk>: at least 2"),
        (["<unk> <unk>"], Words(), "0 distinct words"),
        (
            ["a a b"],
            Words(min_count=9),
            r"min_count = 9 leaves 0 of 2 words \(the most frequent occurs 2 times\)",
        ),
        (["a a b"], Words(min_count=2), "leaves 1 of 2 words"),
        (["a b c"], Words(cap=5), "cap = 5 has no room .* at least 6"),
        (["a b c"], BPE(size=100), "size = 100 is smaller than the alphabet .* more than 260"),
        (["a b c d e f"], WordPiece(size=6), "size = 6 is smaller than the alphabet"),
        (["a a a"], WordPiece(size=60), "1 distinct words"),
    ],
)
def test_a_vocabulary_of_nothing_is_refused(lines, spec, says):
    with pytest.raises(BadData, match=says):
        train_tokeniser(lines, spec)


def test_an_error_in_the_text_is_not_renamed_by_the_trainer():
    def text():
        yield "a b"
        raise BadData("line 2 is wrong")

    with pytest.raises(BadData, match="line 2 is wrong"):
        SubwordTokeniser.train(text(), BPE(size=300))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("{", "is not a saved tokeniser"),
        ("[]", "is not a saved tokeniser"),
        ('{"format": 1, "kind": "runes"}', "is not a saved tokeniser"),
        ('{"format": 1, "kind": "bpe", "tokenizer": {}}', "is not a saved tokeniser"),
        ('{"format": 99, "kind": "words"}', "newer Guidebook"),
    ],
)
def test_a_file_that_is_no_tokeniser_is_refused(text, says, tmp_path):
    path = tmp_path / "tokeniser.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadData, match=says):
        Tokeniser.load(path)
