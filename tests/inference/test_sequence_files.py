"""Drawn sequences as MIDI, WAV, arrays and pictures."""

from __future__ import annotations

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import wavfile

from guidebook.data import KEYS, read_roll, read_wav, sequences_from
from guidebook.inference.datasets import SequenceData, SequenceSpec
from guidebook.inference.figures import png
from guidebook.inference.sequence_figures import drawings, forecast, piano_rolls, pitch_name, waveforms
from guidebook.inference.sequence_files import restored, write_midi, write_sequences, write_wav
from guidebook.models.errors import BadInput

MUSIC = {"kind": "music", "sample_rate": None, "steps_per_beat": 2, "mean": 0.0, "std": 1.0}
SOUND = {"kind": "sound", "sample_rate": 8000, "steps_per_beat": None, "mean": 0.25, "std": 0.5}
STROKES = {"kind": "strokes", "sample_rate": None, "steps_per_beat": None, "mean": 0.0, "std": 20.0}
ARRAY = {"kind": "array", "sample_rate": None, "steps_per_beat": None, "mean": 0.0, "std": 1.0}


def chords(steps, seed=0):
    return (np.random.default_rng(seed).random((steps, KEYS)) < 0.05).astype(np.float32)


@given(
    arrays(np.uint8, st.tuples(st.integers(1, 12), st.just(KEYS)), elements=st.integers(0, 1), fill=st.just(0)),
    st.integers(1, 12),
)
@settings(max_examples=50)
def test_a_roll_is_read_back_from_midi(tmp_path_factory, roll, steps_per_beat):
    roll[0, 40] = 1  # a file without notes is refused
    path = tmp_path_factory.mktemp("midi") / "a.mid"
    write_midi(roll, path, steps_per_beat)
    np.testing.assert_array_equal(read_roll(path, steps_per_beat), roll)


def test_midi_plays_in_the_tempo_that_was_asked(tmp_path):
    write_midi(np.ones((6, KEYS)), tmp_path / "a.mid", steps_per_beat=2, tempo=90)
    midi = mido.MidiFile(str(tmp_path / "a.mid"))
    assert midi.length == pytest.approx(3 * 60 / 90, rel=1e-5)
    assert sorted(message.note for message in midi if message.type == "note_on") == list(range(21, 109))


@pytest.mark.parametrize(
    ("roll", "grid", "says"),
    [
        (np.zeros((4, 87)), {}, r"shape \(4, 87\) .* \(T, 88\) would be right"),
        (np.zeros((0, 88)), {}, r"shape \(0, 88\)"),
        (np.zeros(88), {}, r"shape \(88,\)"),
        (np.zeros((4, 88)), {"steps_per_beat": 0}, "steps_per_beat = 0"),
        (np.zeros((4, 88)), {"tempo": 0.0}, "tempo = 0"),
    ],
)
def test_what_has_no_place_in_midi_is_refused(roll, grid, says, tmp_path):
    with pytest.raises(BadInput, match=says):
        write_midi(roll, tmp_path / "a.mid", **grid)


def test_a_waveform_is_read_back_and_clipped(tmp_path):
    whole = np.arange(-32768, 32768, 257) / 32768
    write_wav(whole, tmp_path / "a.wav", 11_025)
    rate, samples = read_wav(tmp_path / "a.wav")
    assert rate == 11_025
    np.testing.assert_array_equal(samples[:, 0], whole)
    write_wav(np.array([-7.0, 0.5, 7.0]), tmp_path / "b.wav", 8000)
    assert wavfile.read(tmp_path / "b.wav")[1].tolist() == [-32768, 16384, 32767]


@pytest.mark.parametrize("wrong", [np.array([0.0, np.nan]), np.zeros((3, 2)), np.zeros(0)])
def test_what_is_no_sound_is_refused(wrong, tmp_path):
    with pytest.raises(BadInput, match="is no sound"):
        write_wav(wrong, tmp_path / "a.wav", 8000)


def test_steps_come_back_in_the_units_of_their_source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        wavfile.write(tmp_path / f"{i}.wav", 8000, rng.integers(-9999, 9999, 400).astype(np.int16))
    data = SequenceData(SequenceSpec(file=str(tmp_path), frame=100, valid=0, test=0))
    for i, frames in enumerate(data.splits["train"]):
        waveform = restored(frames, data.about)
        np.testing.assert_allclose(waveform, read_wav(tmp_path / f"{i}.wav")[1][:, 0], atol=1e-7)
    moves = restored(np.array([[0.2, 1, 2], [0.9, 0, -1]]), STROKES)
    assert moves.tolist() == [[0, 20, 40], [1, 0, -20]]


def test_music_and_sound_are_written_as_files_of_their_kind(tmp_path):
    rolls = [chords(6), chords(4, 1)]
    written = write_sequences(rolls, MUSIC, tmp_path / "music")
    assert [path.name for path in written] == ["sample-0.mid", "sample-1.mid", "sample.png"]
    read = sequences_from(tmp_path / "music").splits["all"]
    assert all(np.array_equal(a, b) for a, b in zip(read, rolls, strict=True))
    written = write_sequences([np.full((3, 100), -0.5)], SOUND, tmp_path / "sound", "prior")
    assert [path.name for path in written] == ["prior-0.wav", "prior.png"]
    assert not read_wav(written[0])[1].any()  # -0.5 · 0.5 + 0.25
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_drawings_and_arrays_are_written_as_arrays(tmp_path):
    steps = [np.array([[0.0, 1, 2], [1, 3, 4]]), np.array([[1.0, 5, 6]])]
    assert [p.name for p in write_sequences(steps, STROKES, tmp_path, "drawn")] == ["drawn.npz", "drawn.png"]
    assert sequences_from(tmp_path / "drawn.npz").splits["all"][0].tolist() == [[0, 20, 40], [1, 60, 80]]
    assert [p.name for p in write_sequences(steps, ARRAY, tmp_path)] == ["sample.npz"]
    assert sequences_from(tmp_path / "sample.npz").splits["all"][1].tolist() == [[1, 5, 6]]


def test_keys_have_the_names_of_their_pitches():
    assert [pitch_name(key) for key in (0, 1, 39, 40, 48, 87)] == ["A0", "A♯0", "C4", "C♯4", "A4", "C8"]


def test_rolls_share_their_keys_and_their_time():
    one, two = np.zeros((8, KEYS)), np.zeros((4, KEYS))
    one[:, 30], two[:, 51] = 1, 1
    figure = piano_rolls([one, two], ["one", "two"], steps_per_beat=2)
    for axes, roll in zip(figure.axes, (one, two), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), roll[:, 28:54].T)
        assert axes.get_ylim() == (27.5, 53.5)
        assert axes.get_xlim() == (0, 4)
        assert [label.get_text() for label in axes.get_yticklabels()] == ["C4", "C5"]
    assert png(figure).startswith(b"\x89PNG")
    png(piano_rolls([np.zeros((3, KEYS))]))  # silence: all keys


def test_a_forecast_begins_where_the_notes_end():
    observed, truth = chords(8), chords(4, 1)
    figure = forecast(observed, np.clip(truth, 0.1, 0.8), truth, steps_per_beat=2)
    axes = figure.axes[0]
    heard, expected = axes.images
    assert (heard.get_extent()[:2], expected.get_extent()[:2]) == ([0, 4], [4, 6])
    np.testing.assert_allclose(expected.get_array().max(), 0.8)
    line, circles = axes.lines[-2:]
    assert line.get_xdata() == [4, 4]
    assert len(circles.get_xdata()) == truth.sum()
    assert png(figure).startswith(b"\x89PNG")
    png(forecast(observed, truth))


def test_waves_share_time_and_height():
    figure = waveforms([np.sin(np.arange(800)), np.zeros(400)], 8000, ["tone", "silence"])
    assert {(axes.get_xlim(), axes.get_ylim()[1] > 1) for axes in figure.axes} == {((0, 0.1), True)}
    assert png(figure).startswith(b"\x89PNG")
    png(waveforms([np.zeros(9)], 8000))


def test_a_drawing_is_cut_where_the_pen_is_lifted():
    moves = np.array([[0, 1, 1], [1, 1, 0], [1, 5, 5], [0, 1, 1], [0, 0, 2.0]])
    figure = drawings([moves, moves[:2]], ["all", "a stroke"], columns=4)
    first, second = figure.axes
    strokes = [np.column_stack(line.get_data()).tolist() for line in first.lines]
    assert strokes == [[[1, 1], [2, 1]], [[7, 6]], [[8, 7], [8, 9]]]
    assert len(second.lines) == 1
    assert first.yaxis_inverted()
    assert png(figure).startswith(b"\x89PNG")
