"""Corpora of sequences by name, and a user's own: arrays, MIDI files, recordings."""

from __future__ import annotations

import mido
import numpy as np
import pytest
from scipy.io import wavfile

from guidebook.data import BadData, data_folder, named_sequences, read_roll, read_wav, sequences_from

published = pytest.mark.skipif(data_folder() is None, reason="no benchmark data")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GUIDEBOOK_DATA", str(tmp_path))
    for name in ("music", "strokes", "spoken_digits"):
        (tmp_path / name).mkdir()
    return tmp_path


def splits(name, width, rng, low=0, high=2):
    """Arrays of three splits with 3 sequences of 2, 3 and 4 steps each."""
    found = {}
    for split in ("train", "valid", "test"):
        found[f"{split}_{name}"] = rng.integers(low, high, (9, width)).astype(np.int16)
        found[f"{split}_lengths"] = np.array([2, 3, 4], np.int32)
    return found


def recordings(takes, samples=450):
    """One speech-like recording of each take: constant at the take's number."""
    return {
        "audio": np.repeat(takes, samples).astype(np.int16),
        "lengths": np.full(len(takes), samples, np.int32),
        "take": np.array(takes, np.int16),
        "is_test": np.array(takes) < 5,
    }


def midi(path, *notes, ticks=480, type=1, tail=0):
    """A MIDI file of (first tick, last tick, pitch, channel) notes."""
    track = mido.MidiTrack()
    events = [
        (time, kind, pitch, channel)
        for start, stop, pitch, channel in notes
        for time, kind in ((start, "note_on"), (stop, "note_off"))
    ]
    now = 0
    for time, kind, pitch, channel in sorted(events, key=lambda event: (event[0], event[1])):
        track.append(mido.Message(kind, note=pitch, channel=channel, velocity=64, time=time - now))
        now = time
    track.append(mido.MetaMessage("end_of_track", time=tail))
    mido.MidiFile(type=type, ticks_per_beat=ticks, tracks=[track]).save(str(path))
    return path


def test_rolls_keep_their_values_and_splits(folder):
    arrays = splits("roll", 88, np.random.default_rng(0))
    np.savez(folder / "music" / "JSB_Chorales.npz", **arrays)
    corpus = named_sequences("jsb")
    assert (corpus.kind, corpus.steps_per_beat, corpus.standardised()[1:]) == ("music", 1, (0.0, 1.0))
    np.testing.assert_array_equal(corpus.splits["valid"].steps, arrays["valid_roll"])
    assert corpus.splits["test"].lengths.tolist() == [2, 3, 4]


def test_moves_share_the_standard_deviation_of_the_training_split_and_the_pen_is_left(folder):
    arrays = splits("strokes", 3, np.random.default_rng(0), -50, 50)
    for split in ("train", "valid", "test"):
        arrays[f"{split}_strokes"][:, 2] = np.arange(9) % 2
    np.savez(folder / "strokes" / "aaron_sheep.npz", **arrays)
    corpus, mean, std = named_sequences("sheep").standardised()
    assert (corpus.kind, mean) == ("strokes", 0.0)
    assert std == pytest.approx(np.std(arrays["train_strokes"][:, :2].ravel().tolist()))
    for split in ("train", "test"):
        steps = corpus.splits[split].steps
        np.testing.assert_array_equal(steps[:, 0], np.arange(9) % 2)
        np.testing.assert_allclose(steps[:, 1:] * std, arrays[f"{split}_strokes"][:, :2], rtol=1e-6)


def test_speech_is_framed_and_standardised_by_its_training_takes(folder):
    np.savez(folder / "spoken_digits" / "fsdd_8khz.npz", **recordings([0, 4, 5, 9, 10, 30, 49]))
    raw = named_sequences("spoken_digits", frame=200)
    found = {split: (sequences.steps[::2, 0] * 32768).round().tolist() for split, sequences in raw.splits.items()}
    assert found == {"train": [10, 30, 49], "valid": [5, 9], "test": [0, 4]}
    assert raw.splits["train"].lengths.tolist() == [2, 2, 2]  # of 450 samples, 50 are dropped
    corpus, mean, std = raw.standardised()
    assert (corpus.kind, corpus.sample_rate, raw.splits["train"].width) == ("sound", 8000, 200)
    assert mean * 32768 == pytest.approx(np.mean([10, 30, 49]))
    assert std * 32768 == pytest.approx(np.std([10, 30, 49]))
    np.testing.assert_allclose(corpus.splits["test"].steps * std + mean, raw.splits["test"].steps, atol=1e-7)


@published
@pytest.mark.parametrize(
    ("name", "counts", "steps"),
    [("jsb", (229, 76, 77), 13_807), ("spoken_digits", (2400, 300, 300), None), ("kanji", (10_000, 600, 500), 406_111)],
)
def test_published_splits(name, counts, steps):
    splits = named_sequences(name).splits
    assert tuple(len(splits[split]) for split in ("train", "valid", "test")) == counts
    assert steps in (None, len(splits["train"].steps))


def test_a_corpus_that_is_not_there_says_what_it_needs(folder, monkeypatch):
    with pytest.raises(BadData, match=r"'nottingham' needs .*Nottingham\.npz, which is missing"):
        named_sequences("nottingham")
    with pytest.raises(BadData, match="no corpus of sequences 'bach': choose one of jsb"):
        named_sequences("bach")
    monkeypatch.setenv("GUIDEBOOK_DATA", str(folder / "gone"))
    with pytest.raises(BadData, match=r"'jsb' is not shipped and GUIDEBOOK_DATA = .*gone is no folder"):
        named_sequences("jsb")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"valid_roll": None}, "has no array 'valid_roll'"),
        ({"test_lengths": None}, "has no array 'test_lengths'"),
        ({"train_roll": np.zeros((9, 87))}, "'train_roll' .* has 87 columns: 88 would be right"),
        ({"train_lengths": np.array([2, 3, 5])}, r"'train_roll' of .*npz add up to 10, but it has 9 steps"),
    ],
)
def test_a_damaged_corpus_is_named(folder, change, says):
    arrays = {**splits("roll", 88, np.random.default_rng(0)), **change}
    np.savez(folder / "music" / "MuseData.npz", **{k: a for k, a in arrays.items() if a is not None})
    with pytest.raises(BadData, match=says):
        named_sequences("musedata")


def test_a_recording_shorter_than_a_frame_is_named(folder):
    np.savez(folder / "spoken_digits" / "fsdd_8khz.npz", **recordings([0, 5, 10]))
    with pytest.raises(
        BadData, match=r"recording 2, counted from 0, of .* has 450 samples, less than data\.frame = 500"
    ):
        named_sequences("spoken_digits", frame=500)


def test_sound_without_any_change_cannot_be_standardised(folder):
    np.savez(folder / "spoken_digits" / "fsdd_8khz.npz", **recordings([0, 5, 10]))
    with pytest.raises(BadData, match="all the sound of the training split are the same number"):
        named_sequences("spoken_digits").standardised()


def test_arrays_of_a_user(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(10.0).reshape(5, 2), x_lengths=[2, 3], other=np.ones(7))
    corpus = sequences_from(tmp_path / "a.npz")
    assert (corpus.kind, list(corpus.splits), len(corpus.splits["all"])) == ("array", ["all"], 2)
    arrays = splits("y", 2, np.random.default_rng(0))
    arrays = {name.replace("_lengths", "_y_lengths"): array for name, array in arrays.items()}
    np.savez(tmp_path / "b.npz", **arrays)
    assert [len(s) for s in sequences_from(tmp_path / "b.npz").splits.values()] == [3, 3, 3]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones(3)}, r"has 0 arrays with a NAME_lengths beside them \(x\)"),
        ({n: np.ones(2, int) for n in ("x", "x_lengths", "y", "y_lengths")}, "has 2 arrays"),
        ({"train_x": np.ones(2), "train_x_lengths": np.array([2])}, "has no array 'valid_x'"),
        ({"x": np.ones(3), "x_lengths": np.array([3, 0])}, "sequence 1, counted from 0, of array 'x' of .* length 0"),
        ({"x": np.array([1, np.nan]), "x_lengths": np.array([2])}, "NaN .* in sequence 0 at step 1"),
        (
            {f"{s}_x{e}": np.ones((2, w)) if not e else np.array([2]) for s, w in (("train", 2), ("valid", 2), ("test", 3)) for e in ("", "_lengths")},
            "differ in features: train_x has 2, valid_x has 2, test_x has 3",
        ),
    ],
)  # fmt: skip
def test_arrays_that_are_no_sequences_are_refused(arrays, says, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadData, match=says):
        sequences_from(tmp_path / "a.npz")


def test_what_is_neither_npz_nor_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no arrays")
    with pytest.raises(BadData, match=r"a\.txt is no \.npz file"):
        sequences_from(tmp_path / "a.txt")
    with pytest.raises(BadData, match=r"gone\.npz cannot be read"):
        sequences_from(tmp_path / "gone.npz")


def test_a_roll_has_the_notes_on_a_grid(tmp_path):
    path = midi(
        tmp_path / "a.mid",
        (0, 480, 21, 0),  # a beat: two steps
        (250, 260, 108, 1),  # shorter than a step, nearest to step 1
        (470, 970, 60, 0),  # a little early and late
        (0, 480, 35, 9),  # percussion
        tail=480,
    )
    roll = read_roll(path, 2)
    assert roll.shape == (6, 88)  # (970 + 480) / 240 steps
    assert {key: np.flatnonzero(roll[:, key]).tolist() for key in np.flatnonzero(roll.any(0))} == {
        0: [0, 1],
        39: [2, 3],
        87: [1],
    }
    assert read_roll(path, 1)[:, 0].tolist() == [1, 0, 0]


def test_notes_struck_again_or_never_released_sound_on(tmp_path):
    track = mido.MidiTrack([mido.Message("note_on", note=60), mido.Message("note_on", note=60, time=480)])
    track.append(mido.Message("note_on", note=60, velocity=0, time=480))
    track.append(mido.Message("note_on", note=62))
    track.append(mido.MetaMessage("end_of_track", time=480))
    mido.MidiFile(tracks=[track]).save(str(tmp_path / "a.mid"))
    roll = read_roll(tmp_path / "a.mid", 1)
    assert roll[:, [39, 41]].T.tolist() == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("pitch", [20, 109])
def test_a_pitch_outside_the_keys_is_named(tmp_path, pitch):
    with pytest.raises(BadData, match=rf"low\.mid has the pitch {pitch}: 21 \(A0\) to 108 \(C8\)"):
        read_roll(midi(tmp_path / "low.mid", (0, 480, pitch, 0)))


def test_midi_files_without_notes_or_beats_are_refused(tmp_path):
    with pytest.raises(BadData, match=r"a\.mid has no notes"):
        read_roll(midi(tmp_path / "a.mid", (0, 480, 40, 9)))
    with pytest.raises(BadData, match="tracks of independent times"):
        read_roll(midi(tmp_path / "b.mid", (0, 480, 40, 0), type=2))
    with pytest.raises(BadData, match="times in seconds"):
        read_roll(midi(tmp_path / "c.mid", (0, 480, 40, 0), ticks=-0x1900))


def test_midi_files_cut_short_anywhere_are_refused(tmp_path):
    whole = midi(tmp_path / "a.mid", (0, 480, 60, 0), (480, 960, 62, 0)).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.mid").write_bytes(whole[:length])
        with pytest.raises(BadData, match=r"cut\.mid is truncated or no MIDI file"):
            read_roll(tmp_path / "cut.mid")


def test_a_folder_of_midi_files_is_a_corpus_in_order_of_names(tmp_path):
    midi(tmp_path / "b.MID", (0, 960, 60, 0))
    midi(tmp_path / "a.midi", (0, 480, 62, 0))
    (tmp_path / "notes.txt").write_text("read me")
    corpus = sequences_from(tmp_path, steps_per_beat=4)
    assert (corpus.kind, corpus.steps_per_beat, corpus.splits["all"].lengths.tolist()) == ("music", 4, [4, 8])


def test_a_folder_of_one_kind_of_file_is_needed(tmp_path):
    with pytest.raises(BadData, match="has no MIDI file and no WAV file"):
        sequences_from(tmp_path)
    midi(tmp_path / "a.mid", (0, 480, 60, 0))
    wavfile.write(tmp_path / "a.wav", 8000, np.zeros(500, np.int16))
    with pytest.raises(BadData, match="has MIDI files and WAV files"):
        sequences_from(tmp_path)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([0, 128, 255], np.uint8), [-1, 0, 127 / 128]),
        (np.array([-32768, 0, 16384], np.int16), [-1, 0, 0.5]),
        (np.array([-(2**31), 2**30], np.int32), [-1, 0.5]),
        (np.array([-0.25, 1.0], np.float32), [-0.25, 1.0]),
    ],
)
def test_samples_are_in_units_of_full_scale(samples, expected, tmp_path):
    wavfile.write(tmp_path / "a.wav", 8000, samples)
    rate, waveform = read_wav(tmp_path / "a.wav")
    assert (rate, waveform.dtype) == (8000, np.float32)
    np.testing.assert_allclose(waveform[:, 0], expected)


def test_a_folder_of_recordings_is_a_corpus(tmp_path):
    rng = np.random.default_rng(0)
    for name, samples in (("a", 450), ("b", 200)):
        wavfile.write(tmp_path / f"{name}.wav", 16_000, rng.integers(-99, 99, samples).astype(np.int16))
    corpus = sequences_from(tmp_path, frame=100)
    assert (corpus.kind, corpus.sample_rate, corpus.splits["all"].lengths.tolist()) == ("sound", 16_000, [4, 2])
    with pytest.raises(BadData, match=r"b\.wav has 200 samples, less than data\.frame = 201"):
        sequences_from(tmp_path, frame=201)


@pytest.mark.parametrize(
    ("rate", "shape", "says"),
    [
        (8000, (400,), r"a\.wav has 16,000 samples a second and .*b\.wav has 8,000"),
        (16_000, (400, 2), r"a\.wav has 1 channels and .*b\.wav has 2"),
    ],
)
def test_recordings_that_do_not_go_together_are_both_named(tmp_path, rate, shape, says):
    wavfile.write(tmp_path / "a.wav", 16_000, np.zeros(400, np.int16))
    wavfile.write(tmp_path / "b.wav", rate, np.zeros(shape, np.int16))
    with pytest.raises(BadData, match=says):
        sequences_from(tmp_path)


def test_recordings_that_make_no_sense_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8000, np.zeros((400, 2), np.int16))
    with pytest.raises(BadData, match="has 2 channels: mono"):
        sequences_from(tmp_path)
    wavfile.write(path, 8000, np.array([0, 0, np.nan], np.float32))
    with pytest.raises(BadData, match=r"a\.wav has values that are NaN or infinite, first at sample 2"):
        sequences_from(tmp_path)
    wavfile.write(path, 8000, np.zeros(0, np.int16))
    with pytest.raises(BadData, match=r"a\.wav has no samples"):
        sequences_from(tmp_path)


def test_recordings_cut_short_anywhere_are_refused(tmp_path):
    path = tmp_path / "a.wav"
    wavfile.write(path, 8000, np.arange(40, dtype=np.int16))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadData, match=r"a\.wav is truncated or no WAV file"):
            read_wav(path)
