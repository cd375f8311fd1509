"""Where sequences come from: music, speech and drawings by name, or a user's arrays, MIDI files and recordings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from .arrays import read_npz
from .corpora import SPLITS, data_folder
from .errors import BadData
from .midi import KEYS, read_roll
from .sequences import Sequences, needed
from .sound import full_scale, read_wavs

Kind = Literal["music", "sound", "strokes", "array"]

_MUSIC = {"jsb": ("JSB_Chorales", 1), "nottingham": ("Nottingham", 2), "musedata": ("MuseData", 2)}
_STROKES = {"kanji": "short_kanji", "omniglot": "omniglot_strokes", "sheep": "aaron_sheep"}
_VALID_TAKES = range(5, 10)


@dataclass(frozen=True)
class SequenceCorpus:
    """Sequences in the units of their source.

    Attributes:
        splits: "train", "valid" and "test", or "all" of a source that says no splits.
        kind: what a step is: 88 keys, on or off; a frame of samples in [-1, 1]; (pen, dx, dy), pen 1 where the pen is
            lifted after the step; or a row of a user's array.
        sample_rate: of sound, samples per second.
        steps_per_beat: of music, steps per quarter note.
    """

    splits: Mapping[str, Sequences]
    kind: Kind
    sample_rate: int | None = None
    steps_per_beat: int | None = None

    def standardised(self) -> tuple[SequenceCorpus, float, float]:
        """Sound and pen moves as float32 (x - mean) / std, and these two, which the training split gives.

        All samples of sound share one mean and std. The moves dx and dy share one std, and keep their mean and the pen
        as they are (Ha & Eck 2018). Music and a user's arrays are left alone: mean 0, std 1.
        """
        moved = {"sound": slice(None), "strokes": slice(1, None)}.get(self.kind)
        if moved is None:
            return self, 0.0, 1.0
        train = self.splits["train"].steps[:, moved]
        mean = float(train.mean(dtype=np.float64)) if self.kind == "sound" else 0.0
        std = float(train.std(dtype=np.float64))
        if not std:
            raise BadData(
                f"all the {self.kind} of the training split are the same number: some that vary would be right"
            )
        splits = {}
        for split, sequences in self.splits.items():
            steps = sequences.steps.astype(np.float32)
            steps[:, moved] = (steps[:, moved] - mean) / std
            splits[split] = Sequences(steps, sequences.lengths)
        return SequenceCorpus(splits, self.kind, self.sample_rate, self.steps_per_beat), mean, std


def named_sequences(corpus: str, *, frame: int = 200) -> SequenceCorpus:
    """A corpus from the folder GUIDEBOOK_DATA.

    "jsb", "nottingham", "musedata": piano rolls with the published splits (Boulanger-Lewandowski et al. 2012).
    "kanji", "omniglot", "sheep": pen drawings with the splits of Ha & Eck (2018).
    "spoken_digits": recordings at 8 kHz in frames of `frame` samples, the last partial frame dropped; the official
    test split (takes 0 to 4), and takes 5 to 9 of the official training split for validation.

    Raises:
        BadData: no such folder or file, or the file lacks something.
    """
    if corpus in _MUSIC:
        name, steps_per_beat = _MUSIC[corpus]
        path = _path(corpus, f"music/{name}.npz")
        return SequenceCorpus(_published(path, "roll", KEYS), "music", steps_per_beat=steps_per_beat)
    if corpus in _STROKES:
        path = _path(corpus, f"strokes/{_STROKES[corpus]}.npz")
        splits = _published(path, "strokes", 3)
        pen_first = {split: Sequences(s.steps[:, [2, 0, 1]], s.lengths) for split, s in splits.items()}
        return SequenceCorpus(pen_first, "strokes")
    if corpus == "spoken_digits":
        return _spoken_digits(_path(corpus, "spoken_digits/fsdd_8khz.npz"), frame)
    names = ", ".join([*_MUSIC, *_STROKES, "spoken_digits"])
    raise BadData(f"there is no corpus of sequences {corpus!r}: choose one of {names}")


def sequences_from(path: str | Path, *, frame: int = 200, steps_per_beat: int = 2) -> SequenceCorpus:
    """A user's own sequences.

    An `.npz` file: as `sequences_in`. A folder of MIDI files: each a sequence, `read_roll`. A folder of WAV files, mono
    and of one sample rate: each a sequence of frames of `frame` samples, the last partial frame dropped. A folder's
    files are in order of their names.

    Raises:
        BadData: whatever is wrong with it, naming the file.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return sequences_in(read_npz(path), str(path))
    files = sorted(file for file in path.iterdir() if file.is_file())
    midi = [file for file in files if file.suffix.lower() in (".mid", ".midi")]
    wavs = [file for file in files if file.suffix.lower() == ".wav"]
    if bool(midi) == bool(wavs):
        found = "MIDI files and WAV files" if midi else "no MIDI file and no WAV file"
        raise BadData(f"the folder {path} has {found}: files of one kind (.mid, .midi or .wav) would be right")
    if midi:
        rolls = Sequences.of([read_roll(file, steps_per_beat) for file in midi])
        return SequenceCorpus({"all": rolls}, "music", steps_per_beat=steps_per_beat)
    rate, waveforms = read_wavs(wavs)
    return SequenceCorpus({"all": _framed(waveforms, frame, list(map(str, wavs)))}, "sound", sample_rate=rate)


def sequences_in(arrays: Mapping[str, np.ndarray], where: str) -> SequenceCorpus:
    """Arrays in the flat form: `NAME` (all steps, features) and `NAME_lengths` (one for each sequence).

    Or with splits: `train_NAME`, `train_NAME_lengths`, and the same of valid and test. NAME is `x` or any other; other
    arrays are left alone. BadData if there is none or more than one.
    """
    whole = [name for name in arrays if f"{name}_lengths" in arrays]
    names = {name.removeprefix("train_") for name in whole if name.startswith("train_")}
    if split := bool(names):
        keys = {each: f"{each}_{min(names)}" for each in SPLITS}
    else:
        names, keys = set(whole), {"all": min(whole, default="x")}
    if len(names) != 1:
        raise BadData(
            f"{where} has {len(names)} arrays with a NAME_lengths beside them ({', '.join(arrays) or 'no array'}): "
            "one, say x (all steps, features) and x_lengths, or train_x, train_x_lengths and so on, would be right"
        )
    splits = {each: Sequences.from_arrays(arrays, key, f"{key}_lengths", where) for each, key in keys.items()}
    if split and len({sequences.width for sequences in splits.values()}) > 1:
        widths = ", ".join(f"{keys[each]} has {sequences.width}" for each, sequences in splits.items())
        raise BadData(f"the splits of {where} differ in features: {widths}")
    return SequenceCorpus(splits, "array")


def _path(corpus: str, wanted: str) -> Path:
    folder = data_folder()
    if folder is None:
        named = os.environ.get("GUIDEBOOK_DATA")
        why = f"GUIDEBOOK_DATA = {named} is no folder" if named else "GUIDEBOOK_DATA is not set"
        raise BadData(f"the corpus {corpus!r} is not shipped and {why}: point it at a folder with {wanted}")
    if not (folder / wanted).is_file():
        raise BadData(f"the corpus {corpus!r} needs {folder / wanted}, which is missing")
    return folder / wanted


def _published(path: Path, name: str, width: int) -> dict[str, Sequences]:
    arrays = read_npz(path)
    splits = {
        split: Sequences.from_arrays(arrays, f"{split}_{name}", f"{split}_lengths", str(path)) for split in SPLITS
    }
    for split, sequences in splits.items():
        if sequences.width != width:
            raise BadData(f"array '{split}_{name}' of {path} has {sequences.width} columns: {width} would be right")
    return splits


def _spoken_digits(path: Path, frame: int) -> SequenceCorpus:
    arrays = read_npz(path)
    test, take = needed(arrays, "is_test", str(path)).astype(bool), needed(arrays, "take", str(path))
    recordings = Sequences.from_arrays(arrays, "audio", "lengths", str(path))
    if not len(test) == len(take) == len(recordings):
        raise BadData(f"{path} has {len(recordings)} recordings, but {len(take)} takes and {len(test)} is_test")
    valid = ~test & np.isin(take, _VALID_TAKES)
    splits = {}
    for split, chosen in (("train", ~(test | valid)), ("valid", valid), ("test", test)):
        rows = np.flatnonzero(chosen).tolist()
        names = [f"recording {i}, counted from 0, of {path}" for i in rows]
        splits[split] = _framed([full_scale(recordings[i][:, 0]) for i in rows], frame, names)
    return SequenceCorpus(splits, "sound", sample_rate=8000)


def _framed(waveforms: Sequence[np.ndarray], frame: int, names: Sequence[str]) -> Sequences:
    for waveform, name in zip(waveforms, names, strict=True):
        if len(waveform) < frame:
            raise BadData(
                f"{name} has {len(waveform):,} samples, less than data.frame = {frame:,}: take a shorter frame"
            )
    return Sequences.of([wave[: len(wave) // frame * frame].reshape(-1, frame) for wave in waveforms])
