"""Ragged sequences and their batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidebook.data import BadData, SequenceBatches, Sequences


def ragged(lengths, features=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, features)) for length in lengths]


@st.composite
def batches(draw):
    rows = ragged(draw(st.lists(st.integers(1, 12), min_size=1, max_size=40)), draw(st.integers(1, 3)))
    options = {
        "batch_size": draw(st.integers(1, len(rows))),
        "seed": draw(st.integers(0, 2**40)),
        "buckets": draw(st.integers(1, 6)),
        "shuffle": draw(st.booleans()),
    }
    return rows, SequenceBatches(Sequences.of(rows), **options), options


@given(batches(), st.integers(0, 3))
def test_an_epoch_has_every_sequence_once(made, epoch):
    rows, source, options = made
    seen = []
    for step in range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch):
        batch = source.batch(step)
        assert set(np.unique(batch["weight"])) <= {0.0, 1.0}
        seen += batch["index"][batch["weight"] == 1].tolist()
    assert sorted(seen) == list(range(len(rows)))
    assert len(source.shapes) <= options["buckets"]


@given(batches(), st.integers(0, 200))
def test_rows_are_steps_then_zeros(made, step):
    rows, source, _ = made
    batch = source.batch(step)
    types = {name: (array.dtype.name, array.ndim) for name, array in batch.items()}
    assert types == {
        "x": ("float32", 3),
        "mask": ("bool", 2),
        "lengths": ("int32", 1),
        "weight": ("float32", 1),
        "index": ("int32", 1),
    }
    assert batch["x"].shape == (source.batch_size, *batch["mask"].shape[1:], rows[0].shape[1])
    assert batch["mask"].shape[1] in source.shapes
    np.testing.assert_array_equal(batch["mask"].sum(1), batch["lengths"])
    assert not batch["x"][~batch["mask"]].any()
    for x, mask, i in zip(batch["x"], batch["mask"], batch["index"], strict=True):
        np.testing.assert_array_equal(x[mask], rows[i].astype(np.float32))
        assert mask[: len(rows[i])].all()


@given(batches(), st.lists(st.integers(0, 100), min_size=1, max_size=6))
def test_a_batch_depends_on_seed_and_step_alone(made, steps):
    rows, source, options = made
    again = SequenceBatches(Sequences.of(rows), **options)
    forwards = {step: source.batch(step) for step in steps}
    for step in reversed(steps):
        assert all(np.array_equal(a, again.batch(step)[k]) for k, a in forwards[step].items())


@given(batches())
def test_padding_is_the_share_of_slots_outside_the_mask(made):
    _, source, _ = made
    epoch = [source.batch(step) for step in range(source.steps_per_epoch)]
    real = sum((batch["mask"] & (batch["weight"] > 0)[:, None]).sum() for batch in epoch)
    assert source.padding == pytest.approx(1 - real / sum(batch["mask"].size for batch in epoch))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(2, 9))
def test_pieces_are_the_sequences_end_to_end(lengths, max_steps):
    whole = Sequences.of(ragged(lengths))
    cut = whole.pieces(max_steps)
    np.testing.assert_array_equal(cut.steps, whole.steps)
    assert cut.lengths.max() <= max_steps
    assert len(cut) == sum(-(-length // max_steps) for length in lengths)
    assert set(whole.offsets) <= set(cut.offsets)  # no piece reaches over the end of a sequence


def test_seeds_and_epochs_differ_in_order():
    sequences = Sequences.of(ragged(np.arange(200) % 9 + 1))

    def order(seed, epoch):
        source = SequenceBatches(sequences, batch_size=10, seed=seed)
        steps = range(epoch * source.steps_per_epoch, (epoch + 1) * source.steps_per_epoch)
        return tuple(np.concatenate([source.batch(step)["index"] for step in steps]).tolist())

    assert len({order(0, 0), order(0, 1), order(1, 0)}) == 3


def test_a_stream_is_the_batches_in_order():
    source = SequenceBatches(Sequences.of(ragged([3, 1, 4, 1, 5])), batch_size=2)
    for step, batch in enumerate(source.stream(1, 7), 1):
        assert all(np.array_equal(a, source.batch(step)[k]) for k, a in batch.items())


def test_the_mean_counts_real_steps_only():
    sequences = Sequences(np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.uint8), np.array([3, 1]))
    np.testing.assert_allclose(sequences.mean, [0.75, 0.75])
    assert sequences.mean.dtype == np.float32
    assert sequences[1].tolist() == [[1, 1]]


def test_single_numbers_are_steps_of_one_feature():
    assert SequenceBatches(Sequences.of([np.arange(3), np.arange(2)]), batch_size=2).batch(0)["x"].shape == (2, 3, 1)


def test_the_flat_form_is_read_back(tmp_path):
    np.savez(tmp_path / "a.npz", roll=np.eye(5, dtype=np.uint8), lengths=np.array([2, 3]))
    sequences = Sequences.from_npz(tmp_path / "a.npz", "roll", "lengths")
    assert [len(sequence) for sequence in sequences] == [2, 3]
    np.testing.assert_array_equal(sequences[1], np.eye(5)[2:])
    with pytest.raises(BadData, match=r"a\.npz has no array 'x': it has roll, lengths"):
        Sequences.from_npz(tmp_path / "a.npz", "x", "lengths")


NAN = np.array([[0.0, 0], [0, 0], [0, 0], [0, np.nan]])


@pytest.mark.parametrize(
    ("steps", "lengths", "says"),
    [
        (np.zeros((3, 2)), [2, 0, 1], "sequence 1, counted from 0, of the data has length 0"),
        (np.zeros((3, 2)), [4, -1], "sequence 1, counted from 0, of the data has length -1"),
        (np.zeros((3, 2)), [2, 2], "add up to 4, but it has 3 steps"),
        (np.zeros((3, 2)), [1.5, 1.5], "one whole number for each sequence"),
        (np.zeros((0, 2)), [], "one whole number for each sequence"),
        (np.zeros((3, 0)), [3], "shape \\(3, 0\\): numbers"),
        (np.array(["a", "b"]), [2], "type <U1"),
        (NAN, [2, 2], "NaN or infinite, first in sequence 1 at step 1, counted from 0"),
        (-np.inf * np.ones((2, 1)), [1, 1], "first in sequence 0 at step 0"),
    ],
)
def test_sequences_that_make_no_sense_are_refused(steps, lengths, says):
    with pytest.raises(BadData, match=says):
        Sequences(steps, np.array(lengths))


def test_steps_of_several_shapes_are_refused():
    with pytest.raises(BadData, match=r"differ in the shape of a step \(\(2,\), \(3,\)\)"):
        Sequences.of([np.zeros((4, 2)), np.zeros((4, 3))])
    with pytest.raises(BadData, match="has no sequence"):
        Sequences.of([])
