"""Piano rolls of MIDI files, on a grid of equal parts of a beat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mido
import numpy as np

from .errors import BadData

LOWEST, KEYS = 21, 88
"""Column c of a piano roll is MIDI pitch 21 + c: A0 to C8."""

_PERCUSSION = 9


def read_roll(path: str | Path, steps_per_beat: int = 2) -> np.ndarray:
    """(T, 88) uint8: 1 where a key sounds in a step, a beat being a quarter note and `steps_per_beat` steps.

    Notes begin and end at the nearest step and last one at least; percussion (channel 10), loudness, tempo and who
    plays are left out, and a note struck again while it sounds goes on. T reaches to the end of the longest track.

    Raises:
        BadData: no MIDI file, damaged, without a note or a beat, or with a pitch outside 21 … 108.
    """
    midi = _opened(path)
    notes = [note for track in midi.tracks for note in _notes(track)]
    if not notes:
        raise BadData(f"{path} has no notes: a MIDI file with at least one would be right")
    for pitch, _, _ in notes:
        if not LOWEST <= pitch < LOWEST + KEYS:
            raise BadData(f"{path} has the pitch {pitch}: {LOWEST} (A0) to {LOWEST + KEYS - 1} (C8) would be right")

    def step(ticks: int) -> int:
        return (2 * ticks * steps_per_beat + midi.ticks_per_beat) // (2 * midi.ticks_per_beat)

    spans = [(pitch - LOWEST, step(start), max(step(stop), step(start) + 1)) for pitch, start, stop in notes]
    ends = [step(sum(message.time for message in track)) for track in midi.tracks]
    roll = np.zeros((max(*ends, *(stop for _, _, stop in spans)), KEYS), np.uint8)
    for key, start, stop in spans:
        roll[start:stop, key] = 1
    return roll


def _opened(path: str | Path) -> mido.MidiFile:
    try:
        midi = mido.MidiFile(str(path))
    except Exception as error:  # mido raises whatever its parser stumbles over
        raise BadData(
            f"{path} is truncated or no MIDI file ({type(error).__name__}: {error}): copy it again"
        ) from error
    if midi.type == 2 or midi.ticks_per_beat <= 0:
        kind = "tracks of independent times" if midi.type == 2 else "times in seconds, not in beats"
        raise BadData(f"{path} is a MIDI file with {kind}: one of type 0 or 1 with ticks per beat would be right")
    return midi


def _notes(track: mido.MidiTrack) -> Iterator[tuple[int, int, int]]:
    """(pitch, first tick, tick of the end) of every note; one that is never released lasts to the end of the track."""
    now, sounding = 0, {}
    for message in track:
        now += message.time
        if message.type not in ("note_on", "note_off") or message.channel == _PERCUSSION:
            continue
        key = (message.channel, message.note)
        if key in sounding:
            yield message.note, sounding.pop(key), now
        if message.type == "note_on" and message.velocity:
            sounding[key] = now
    for (_, pitch), start in sounding.items():
        yield pitch, start, now
