"""Waveforms of WAV files, as numbers in [-1, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.io import wavfile

from .errors import BadData


def read_wav(path: str | Path) -> tuple[int, np.ndarray]:
    """Samples per second, and (S, channels) float32 in units of full scale.

    Raises:
        BadData: no WAV file, truncated, empty, or with a NaN.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # chunks of tags and the like
            warnings.filterwarnings("error", "Reached EOF prematurely")
            rate, samples = wavfile.read(path)
    except Exception as error:  # scipy raises whatever its parser stumbles over
        raise BadData(f"{path} is truncated or no WAV file ({type(error).__name__}: {error}): copy it again") from error
    waveform = full_scale(samples if samples.ndim == 2 else samples[:, None])
    if not len(waveform):
        raise BadData(f"{path} has no samples: a WAV file with sound in it would be right")
    if not (finite := np.isfinite(waveform).all(1)).all():
        raise BadData(f"{path} has values that are NaN or infinite, first at sample {int(np.argmin(finite))}")
    return int(rate), waveform


def read_wavs(paths: Sequence[Path]) -> tuple[int, list[np.ndarray]]:
    """Their samples per second, and one (S,) waveform of each file.

    Raises:
        BadData: as `read_wav`; sample rates or channel numbers differ; not mono.
    """
    found = [read_wav(path) for path in paths]
    rates, channels = [rate for rate, _ in found], [waveform.shape[1] for _, waveform in found]
    for what, values in (("samples a second", rates), ("channels", channels)):
        if odd := next((i for i, value in enumerate(values) if value != values[0]), 0):
            raise BadData(
                f"{paths[0]} has {values[0]:,} {what} and {paths[odd]} has {values[odd]:,}: the same in all files of "
                "a folder would be right"
            )
    if channels[0] != 1:
        raise BadData(f"{paths[0]}, like all of its folder, has {channels[0]} channels: mono would be right")
    return rates[0], [waveform[:, 0] for _, waveform in found]


def full_scale(samples: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] from samples as WAV files store them: bytes around 128, signed integers, or numbers."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype.kind == "u":
        return (samples.astype(np.float32) - 128) / 128
    return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
