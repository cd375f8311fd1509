"""The `[data]` table of a pair whose data are sequences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.io import wavfile

from guidebook.data import BadData
from guidebook.inference.datasets import Dataset, SequenceData, SequenceSpec
from guidebook.models.errors import BadInput


def arrays(lengths, features=2, seed=0):
    steps = np.random.default_rng(seed).normal(size=(sum(lengths), features))
    return {"x": steps, "x_lengths": np.array(lengths)}


@pytest.fixture
def speech(tmp_path):
    """A folder of 10 recordings of 300 to 1,200 samples."""
    rng = np.random.default_rng(0)
    for i in range(10):
        samples = (1000 * (i + 1) * rng.normal(size=300 + 100 * i)).astype(np.int16)
        wavfile.write(tmp_path / f"{i}.wav", 8000, samples)
    return tmp_path


def test_it_is_a_dataset_of_three_disjoint_splits_always_cut_alike():
    data: Dataset = SequenceData(SequenceSpec(), arrays([3, 4] * 10))
    assert data.width == 2
    assert {split: len(s) for split, s in data.splits.items()} == {"train": 16, "valid": 2, "test": 2}
    rows = {split: {row.tobytes() for row in sequences} for split, sequences in data.splits.items()}
    assert len(set.union(*rows.values())) == 20
    again = SequenceData(SequenceSpec(), arrays([3, 4] * 10))
    np.testing.assert_array_equal(data.splits["valid"].steps, again.splits["valid"].steps)
    np.testing.assert_allclose(data.features, data.splits["train"].steps.mean(0), rtol=1e-6)
    batch = data.batches("valid", batch_size=8).batch(0)
    assert batch["x"].shape == (8, 4, 2)
    assert batch["weight"].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


def test_splits_of_a_file_are_kept(tmp_path):
    parts = {"train": [4, 3], "valid": [2], "test": [5, 6, 2]}
    found = {f"{s}_{k}": a for s, lengths in parts.items() for k, a in arrays(lengths).items()}
    np.savez(tmp_path / "a.npz", **found)
    data = SequenceData(SequenceSpec(file=str(tmp_path / "a.npz")))
    assert {split: data.splits[split].lengths.tolist() for split in parts} == parts


def test_training_sequences_are_cut_and_the_others_stay_whole():
    whole = SequenceData(SequenceSpec(valid=0.25, test=0.25), arrays([9] * 8))
    cut = SequenceData(SequenceSpec(valid=0.25, test=0.25, max_steps=4), arrays([9] * 8))
    assert set(cut.splits["train"].lengths.tolist()) == {3}
    assert set(cut.splits["valid"].lengths.tolist()) == set(cut.splits["test"].lengths.tolist()) == {9}
    assert cut.batches("train", batch_size=4, shuffle=True).data_size == 12
    assert cut.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(cut.features, whole.features)


def test_speech_is_standardised_by_the_training_split(speech):
    data = SequenceData(SequenceSpec(file=str(speech), frame=100))
    train = data.splits["train"].steps.astype(np.float64)
    assert (train.mean(), train.std()) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-6))
    assert data.width == 100
    assert {"kind": "sound", "sample_rate": 8000, "steps_per_beat": None}.items() <= data.about.items()
    assert json.loads(json.dumps(data.about)) == data.about


def test_fingerprints_tell_data_and_frames_apart(speech):
    one, two, three = arrays([3, 4]), arrays([3, 4], seed=1), {**arrays([3, 4]), "x_lengths": np.array([4, 3])}
    spec = SequenceSpec(valid=0, test=0)
    assert SequenceData(spec, one).fingerprint == SequenceData(spec, arrays([3, 4])).fingerprint
    folder = [SequenceData(SequenceSpec(file=str(speech), frame=frame)) for frame in (100, 150)]
    found = [*(SequenceData(spec, each) for each in (one, two, three)), *folder]
    assert len({data.fingerprint for data in found}) == 5


def test_a_batch_in_order_is_no_larger_than_the_training_split():
    data = SequenceData(SequenceSpec(valid=0, test=0), arrays([3, 4, 5]))
    assert data.batches("test", batch_size=32).batch_size == 3
    with pytest.raises(BadData, match="batch_size = 32 is larger than the training split, which has 3"):
        data.batches("train", batch_size=32, shuffle=True)


def test_single_steps_among_longer_sequences_are_kept():
    data = SequenceData(SequenceSpec(valid=0, test=0), arrays([1, 2, 1]))
    assert data.splits["train"].lengths.tolist() == [1, 2, 1]


@pytest.mark.parametrize(
    ("spec", "found", "says"),
    [
        ({}, None, "the pair brings no data: say data.corpus"),
        ({"corpus": "jsb", "file": "a.npz"}, None, "data.corpus = 'jsb' and data.file are both given"),
        ({}, arrays([1, 1, 1]), "every training sequence is a single step"),
        ({}, {"x": np.ones(3), "x_lengths": np.array([3, 0])}, "has length 0"),
        ({}, {"x": np.ones(3)}, "the pair's data has 0 arrays with a NAME_lengths"),
    ],
)
def test_data_that_make_no_sense_are_refused(spec, found, says):
    with pytest.raises((BadInput, BadData), match=says):
        SequenceData(SequenceSpec(**spec), found)


def test_words_are_not_hidden():
    with pytest.raises(BadInput, match=r"fit\.word_dropout hides words"):
        SequenceData(SequenceSpec(), arrays([3, 4])).batches("train", batch_size=1, word_keep=0.5)
    with pytest.raises(BadInput, match="no split 'dev'"):
        SequenceData(SequenceSpec(), arrays([3, 4])).batches("dev", batch_size=1)


@pytest.mark.parametrize("wrong", [{"max_steps": 1}, {"frame": 0}, {"corpus": "bach"}, {"valid": 0.5}, {"buckets": 0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValidationError):
        SequenceSpec(**wrong)
