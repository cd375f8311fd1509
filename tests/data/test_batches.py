import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidebook.data import BOS, EOS, PAD, UNK, BadData, Batches, Sentences, WordTokeniser

TOKENISER = WordTokeniser([f"w{i}" for i in range(20)])
ROWS = st.lists(st.lists(st.integers(UNK, 23), min_size=1, max_size=9), min_size=1, max_size=40)


@st.composite
def batches(draw, **fixed):
    rows = draw(ROWS)
    options = {
        "batch_size": draw(st.integers(1, len(rows))),
        "seed": draw(st.integers(-(2**65), 2**65)),
        "buckets": draw(st.integers(1, 6)),
        "shuffle": draw(st.booleans()),
        "word_keep": draw(st.sampled_from([0.0, 0.5, 1.0])),
    }
    return rows, Batches(Sentences.of(rows, TOKENISER), **{**options, **fixed})


@given(batches(), st.integers(0, 3))
def test_an_epoch_has_every_sentence_once(made, epoch):
    rows, source = made
    steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
    seen = []
    for step in steps:
        batch = source.batch(step)
        assert set(np.unique(batch["weight"])) <= {0.0, 1.0}
        seen += batch["index"][batch["weight"] == 1].tolist()
    assert sorted(seen) == list(range(len(rows)))


@given(batches(), st.integers(0, 200))
def test_rows_are_bos_words_eos_pad(made, step):
    rows, source = made
    batch = source.batch(step)
    width = batch["targets"].shape[1]
    assert width in source.shapes
    assert batch["weight"].any()
    for name, shape in {"tokens": width + 1, "inputs": width, "targets": width}.items():
        assert batch[name].shape == (source.batch_size, shape)
        assert batch[name].dtype == np.int32
    assert np.array_equal(batch["targets"], batch["tokens"][:, 1:])
    for tokens, length, i in zip(batch["tokens"], batch["lengths"], batch["index"], strict=True):
        sentence = [BOS, *rows[i], EOS]
        assert tokens.tolist() == sentence + [PAD] * (width + 1 - len(sentence))
        assert length == len(rows[i]) + 1


@given(batches(), st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(made, steps):
    rows, source = made
    options = {name: getattr(source, name) for name in ("batch_size", "seed", "shuffle", "word_keep")}
    again = Batches(Sentences.of(rows, TOKENISER), edges=source.shapes, **options)
    forwards = {step: source.batch(step) for step in steps}
    for step in reversed(steps):
        assert all(np.array_equal(a, again.batch(step)[k]) for k, a in forwards[step].items())


@given(batches(word_keep=0.0), st.integers(0, 50))
def test_keeping_no_word_makes_every_word_unknown(made, step):
    batch = made[1].batch(step)
    given_ = batch["tokens"][:, :-1]
    special = np.isin(given_, [BOS, EOS, PAD])
    assert np.array_equal(batch["inputs"], np.where(special, given_, UNK))


@given(batches(word_keep=1.0), st.integers(0, 50))
def test_keeping_every_word_changes_nothing(made, step):
    batch = made[1].batch(step)
    assert np.array_equal(batch["inputs"], batch["tokens"][:, :-1])


@pytest.mark.parametrize("keep", [0.2, 0.62])
def test_words_are_kept_as_often_as_asked(keep, split, lines):
    source = Batches(split(lines(400)), batch_size=16, word_keep=keep)
    kept = words = 0
    for step in range(10 * source.steps_per_epoch):
        batch = source.batch(step)
        word = batch["tokens"][:, :-1] > UNK
        kept += int((word & (batch["inputs"] == batch["tokens"][:, :-1])).sum())
        words += int(word.sum())
    assert abs(kept - keep * words) < 5 * np.sqrt(words * keep * (1 - keep))


def test_epochs_and_seeds_differ_in_order(split, lines):
    sentences = split(lines(300))

    def order(seed, epoch):
        source = Batches(sentences, batch_size=10, seed=seed)
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        return np.concatenate([source.batch(step)["index"] for step in steps]).tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert len({tuple(o) for o in orders}) == 3


def test_shapes_are_few_and_padding_little(split, lines):
    source = Batches(split(lines(2000)), batch_size=32, buckets=4)
    assert len(source.shapes) <= 4
    assert {source.batch(s)["targets"].shape[1] for s in range(source.steps_per_epoch)} == set(source.shapes)
    one = Batches(source.sentences, batch_size=32, buckets=1)
    assert source.padding < 0.2 < one.padding


def test_shapes_of_another_split_are_used_and_extended(split, lines):
    train = Batches(split(lines(500, longest=8)), batch_size=16, buckets=3)
    longer = Batches(split(lines(100, longest=12)), batch_size=16, shuffle=False, edges=train.shapes)
    assert set(longer.shapes) <= {*train.shapes, 13}
    assert longer.shapes[-1] == 13
    shorter = Batches(split(["a b", "a"]), batch_size=2, shuffle=False, edges=train.shapes)
    assert set(shorter.shapes) <= set(train.shapes)


def test_in_order_a_split_may_be_smaller_than_a_batch(split):
    batch = Batches(split(["a b", "b"]), batch_size=4, shuffle=False).batch(0)
    assert batch["weight"].tolist() == [1, 1, 0, 0]
    assert batch["index"].tolist() == [1, 0, 1, 1]


def test_a_batch_larger_than_the_training_split_is_refused(split):
    with pytest.raises(BadData, match=r"batch_size = 4 is larger than the training split, which has 2"):
        Batches(split(["a b", "b"]), batch_size=4)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 1, "word_keep": 1.5}])
def test_wrong_numbers_are_refused(wrong, split):
    with pytest.raises(BadData, match="would be right"):
        Batches(split(["a b", "b"]), **wrong)


def test_a_stream_is_the_batches_in_order(split, lines):
    source = Batches(split(lines(100)), batch_size=8, word_keep=0.5)
    streamed = list(source.stream(3, 30))
    assert len(streamed) == 27
    for step, batch in enumerate(streamed, 3):
        assert all(np.array_equal(a, source.batch(step)[k]) for k, a in batch.items())


def test_a_stream_left_early_ends_its_thread(split, lines):
    stream = Batches(split(lines(100)), batch_size=8).stream(0)
    next(stream)
    assert any(thread.name == "guidebook-prefetch" for thread in threading.enumerate())
    stream.close()
    assert not any(thread.name == "guidebook-prefetch" for thread in threading.enumerate())


def test_an_error_in_the_thread_reaches_the_consumer(split, lines, monkeypatch):
    source = Batches(split(lines(100)), batch_size=8)
    batch = source.batch

    def fails(step):
        if step == 2:
            raise RuntimeError("disk gone")
        return batch(step)

    monkeypatch.setattr(source, "batch", fails)
    stream = source.stream(0, 9)
    assert [next(stream)["tokens"].shape[0] for _ in range(2)] == [8, 8]
    with pytest.raises(RuntimeError, match="disk gone"):
        next(stream)
