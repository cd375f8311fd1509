"""Drawn sequences as files that other programs open: MIDI, WAV, arrays, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mido
import numpy as np
from scipy.io import wavfile

from ..data import KEYS, LOWEST
from ..models.errors import BadInput
from .files import write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TICKS = 120  # of a step
_MOST_STEPS_PER_BEAT = 32767 // _TICKS  # 15 bits of a MIDI header hold the ticks of a beat


def write_midi(roll: np.ndarray, path: str | Path, steps_per_beat: int = 2, tempo: float = 120.0) -> None:
    """A piano roll as a MIDI file of one track, which `data.read_roll` reads back.

    A key that is on in consecutive steps is one note held, as a roll cannot tell it from a note struck again.

    Args:
        roll: (T, 88), a key sounds where it exceeds a half; column 0 is A0.
        steps_per_beat: steps in a quarter note.
        tempo: quarter notes in a minute.

    Raises:
        BadInput: another shape, or no such tempo or grid.
    """
    roll = np.asarray(roll)
    if roll.ndim != 2 or roll.shape[1] != KEYS or not len(roll):
        raise BadInput(f"a piano roll of shape {roll.shape} has no place in MIDI: (T, {KEYS}) would be right")
    if not 1 <= steps_per_beat <= _MOST_STEPS_PER_BEAT or not 4 <= tempo <= 1000:
        raise BadInput(
            f"steps_per_beat = {steps_per_beat} and tempo = {tempo:g} have no place in MIDI: 1 to {_MOST_STEPS_PER_BEAT} "
            "steps and 4 to 1000 beats a minute would be right"
        )
    silence = np.zeros((1, KEYS), np.int8)
    change = np.diff(np.concatenate([silence, (roll > 0.5).astype(np.int8), silence]), axis=0)
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    before = 0
    for step, key in np.argwhere(change).tolist():
        kind = "note_on" if change[step, key] > 0 else "note_off"
        track.append(mido.Message(kind, note=LOWEST + key, velocity=64, time=(step - before) * _TICKS))
        before = step
    track.append(mido.MetaMessage("end_of_track", time=(len(roll) - before) * _TICKS))
    file = BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=steps_per_beat * _TICKS, tracks=[track]).save(file=file)
    write(Path(path), file.getvalue())


def write_wav(waveform: np.ndarray, path: str | Path, sample_rate: int) -> None:
    """(S,) numbers as a mono WAV file of 16 bits; what lies outside [-1, 1] is clipped. BadInput if one is NaN."""
    waveform = np.asarray(waveform, np.float64)
    if waveform.ndim != 1 or not len(waveform) or np.isnan(waveform).any():
        raise BadInput(f"a waveform of shape {waveform.shape}, or with NaN, is no sound: (S,) numbers would be right")
    file = BytesIO()
    wavfile.write(file, sample_rate, np.clip(np.rint(waveform * 32768), -32768, 32767).astype(np.int16))
    write(Path(path), file.getvalue())


def restored(x: np.ndarray, about: Mapping[str, Any]) -> np.ndarray:
    """Steps (T, D) of a model in the units of their source, by `SequenceData.about`.

    Sound: (T · D,) samples in [-1, 1]. Strokes: (T, 3) pen 0 or 1, dx, dy. Music and arrays: x.
    """
    x = np.asarray(x, np.float64)
    if about["kind"] == "sound":
        return x.reshape(-1) * about["std"] + about["mean"]
    if about["kind"] == "strokes":
        return np.column_stack([x[:, 0] > 0.5, x[:, 1:] * about["std"]])
    return x


def write_sequences(
    sequences: Sequence[np.ndarray],
    about: Mapping[str, Any],
    folder: str | Path,
    name: str = "sample",
    picture: Figure | None = None,
) -> list[Path]:
    """Drawn sequences, (T, D) each as the model draws them, as files of their kind and one picture of all.

    Music: NAME-0.mid … and NAME.png. Sound: NAME-0.wav … and NAME.png. Strokes: NAME.npz and NAME.png. A user's
    arrays: NAME.npz. An `.npz` holds x and x_lengths, as `data.sequences_in` reads them.

    picture: in place of that of all sequences.

    Returns:
        The files, in this order.
    """
    from .figures import png

    folder, sources = Path(folder), [restored(x, about) for x in sequences]
    kind, paths = about["kind"], []
    if kind == "music":
        for number, roll in enumerate(sources):
            paths.append(folder / f"{name}-{number}.mid")
            write_midi(roll, paths[-1], about["steps_per_beat"])
    elif kind == "sound":
        for number, waveform in enumerate(sources):
            paths.append(folder / f"{name}-{number}.wav")
            write_wav(waveform, paths[-1], about["sample_rate"])
    else:
        paths.append(folder / f"{name}.npz")
        file = BytesIO()
        np.savez(file, x=np.concatenate(sources), x_lengths=np.array([len(source) for source in sources]))
        write(paths[-1], file.getvalue())
    picture = picture or picture_of(sequences, about)
    if picture is not None:
        paths.append(folder / f"{name}.png")
        write(paths[-1], png(picture))
    return paths


def picture_of(sequences: Sequence[np.ndarray], about: Mapping[str, Any]) -> Figure | None:
    """Piano rolls, waveforms or drawings of sequences (T, D) as the model draws them; None of a user's arrays."""
    from . import sequence_figures as figures

    sources = [restored(x, about) for x in sequences]
    if about["kind"] == "music":
        return figures.piano_rolls(sources, steps_per_beat=about["steps_per_beat"])
    if about["kind"] == "sound":
        return figures.waveforms(sources, about["sample_rate"])
    return figures.drawings(sources) if about["kind"] == "strokes" else None
