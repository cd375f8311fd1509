"""Pictures of sequences: piano rolls, completed music, bands, waveforms, drawings; as `figures`, without pyplot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from ..data import LOWEST
from .figures import BLUE, GREY, INK, ORANGE, plain

_PITCHES = ("C", "C♯", "D", "D♯", "E", "F", "F♯", "G", "G♯", "A", "A♯", "B")
_HEARD = LinearSegmentedColormap.from_list("heard", ["white", INK])
_EXPECTED = LinearSegmentedColormap.from_list("expected", ["white", "#9CCBE8", BLUE, "#002F4B"])
_MARGIN = 2  # keys shown above and below those that sound


def pitch_name(key: int) -> str:
    """Of a column of a piano roll: 0 is A0, 39 is C4, the middle C."""
    octave, pitch = divmod(LOWEST + key, 12)
    return f"{_PITCHES[pitch]}{octave - 1}"


def piano_rolls(
    rolls: Sequence[np.ndarray], titles: Sequence[str] | None = None, steps_per_beat: int | None = None
) -> Figure:
    """One roll (T, 88) below the other, of notes or of probabilities, over the keys that sound in any of them.

    steps_per_beat: measure time in beats, not in steps.
    """
    low, high = _range(np.concatenate(rolls))
    panel = 0.8 + 0.045 * (high - low)
    figure = Figure(figsize=(9, 0.3 + panel * len(rolls)), layout="constrained")
    panels = figure.subplots(len(rolls), 1, squeeze=False, sharex=True)[:, 0]
    for number, (axes, roll) in enumerate(zip(panels, rolls, strict=True)):
        _roll(axes, np.asarray(roll, float), 0, low, high, _EXPECTED, steps_per_beat)
        plain(axes, titles[number] if titles else "", _time(steps_per_beat) if number == len(rolls) - 1 else "", "")
    panels[0].set_xlim(0, max(map(len, rolls)) / (steps_per_beat or 1))
    return figure


def completion(
    probabilities: np.ndarray,
    observed: np.ndarray,
    truth: np.ndarray | None = None,
    steps_per_beat: int | None = None,
    title: str = "",
) -> Figure:
    """What was heard, in grey, and between lines the probability of each key in the steps that were not, in blue.

    probabilities: (T, 88), of the steps that were heard the notes; observed: (T,) bool; truth: (T, 88) the notes that
    were played where none was heard, as circles.
    """
    notes = np.asarray(probabilities, float)
    played = np.zeros_like(notes) if truth is None else np.where(observed[:, None], 0.0, truth)
    low, high = _range(np.maximum(notes, played))
    figure = Figure(figsize=(10, 1.6 + 0.065 * (high - low)), layout="constrained")
    axes, unit, image = figure.subplots(), steps_per_beat or 1, None
    edges = np.flatnonzero(np.diff(observed)) + 1
    for start, part in zip([0, *edges.tolist()], np.split(notes, edges), strict=True):
        heard = observed[start]
        drawn = _roll(axes, part, start, low, high, _HEARD if heard else _EXPECTED, steps_per_beat)
        image = image if heard else drawn
    for edge in edges:
        axes.axvline(edge / unit, color=ORANGE, lw=1.5, ls="--")
    if played.any():
        step, key = np.argwhere(played > 0.5).T
        axes.plot((step + 0.5) / unit, key, "o", ms=4.5, mfc="none", mec=ORANGE, mew=1, label="what was played")
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
    axes.set_xlim(0, len(notes) / unit)
    plain(axes, title, _time(steps_per_beat), "")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, pad=0.01, fraction=0.03)
        bar.set_label("probability of the note", color=INK, fontsize=8)
        bar.outline.set_edgecolor(GREY)  # type: ignore[operator]
        bar.ax.tick_params(colors=INK, labelsize=8)
    return figure


def forecast(
    observed: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray | None = None,
    steps_per_beat: int | None = None,
    title: str = "forecast",
) -> Figure:
    """What was heard, in grey, and behind a line the probability of each key in the steps that follow, in blue.

    observed: (T, 88) notes; probabilities: (F, 88); truth: (F, 88) the notes that did follow, as circles.
    """
    heard = np.arange(len(observed) + len(probabilities)) < len(observed)
    played = None if truth is None else np.concatenate([np.zeros_like(observed), truth])
    return completion(np.concatenate([observed, probabilities]), heard, played, steps_per_beat, title)


def bands(
    mean: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    truth: np.ndarray,
    observed: np.ndarray,
    rate: float | None = None,
    title: str = "",
) -> Figure:
    """One feature below the other: in ink where observed (T,), elsewhere its mean within a band; mean … truth (T, F).

    truth: NaN where it is not known. rate: of steps, to measure time in seconds.
    """
    time = np.arange(len(mean)) / (rate or 1)
    figure = Figure(figsize=(9, 0.5 + 1.7 * mean.shape[1]), layout="constrained")
    panels = figure.subplots(mean.shape[1], 1, squeeze=False, sharex=True)[:, 0]
    near = ~observed | np.append(~observed[1:], False) | np.append(False, ~observed[:-1])
    for number, axes in enumerate(panels):
        shown = [np.where(near, part[:, number], np.nan) for part in (mean, low, high)]
        width = 1.4 if len(mean) < 1000 else 0.5
        axes.fill_between(time, shown[1], shown[2], color=BLUE, alpha=0.25, lw=0, label="nine tenths")
        axes.plot(time, shown[0], color=BLUE, lw=width, label="mean")
        axes.plot(time, np.where(observed, mean[:, number], np.nan), color=INK, lw=width, label="observed")
        if np.isfinite(truth[:, number]).any():
            axes.plot(time, truth[:, number], color=ORANGE, lw=0.8, label="what it was")
        name = f"x[{number}]" if len(panels) > 1 else ""
        plain(axes, title if number == 0 else "", "", name)
    panels[-1].set_xlabel("seconds" if rate else "steps", color=INK)
    panels[0].legend(frameon=False, fontsize=8, ncols=4, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.1)
    panels[0].set_xlim(time[0], time[-1])
    return figure


def waveforms(waves: Sequence[np.ndarray], sample_rate: int, titles: Sequence[str] | None = None) -> Figure:
    """One waveform (S,) below the other, on one scale of time and of height."""
    figure = Figure(figsize=(9, 0.4 + 1.3 * len(waves)), layout="constrained")
    panels = figure.subplots(len(waves), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for number, (axes, wave) in enumerate(zip(panels, waves, strict=True)):
        axes.axhline(0, color=GREY, lw=0.6)
        axes.plot(np.arange(len(wave)) / sample_rate, wave, color=BLUE, lw=0.5)
        plain(axes, titles[number] if titles else "", "seconds" if number == len(waves) - 1 else "", "")
    reach = 1.05 * max(float(np.abs(wave).max()) for wave in waves) or 1.0
    panels[0].set(xlim=(0, max(map(len, waves)) / sample_rate), ylim=(-reach, reach))
    return figure


def drawings(strokes: Sequence[np.ndarray], titles: Sequence[str] | None = None, columns: int = 6) -> Figure:
    """Drawings side by side, each to its own scale.

    strokes: (T, 3) each: pen, dx, dy; dy points down, and the pen is lifted after a step where pen exceeds a half.
    """
    columns = min(columns, len(strokes))
    rows = -(-len(strokes) // columns)
    figure = Figure(figsize=(1.5 * columns, (1.75 if titles else 1.5) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
        axes.set_aspect("equal", adjustable="datalim")
        axes.invert_yaxis()
    for number, (axes, drawing) in enumerate(zip(panels, strokes, strict=False)):
        points = np.cumsum(drawing[:, 1:], axis=0)
        for stroke in np.split(points, np.flatnonzero(drawing[:, 0] > 0.5) + 1):
            if len(stroke):
                axes.plot(*stroke.T, color=INK, lw=1.4, marker="." if len(stroke) == 1 else None, ms=3)
        if titles:
            axes.set_title(titles[number], fontsize=8, color=INK)
    return figure


def _roll(
    axes: Axes, roll: np.ndarray, start: int, low: int, high: int, colours: LinearSegmentedColormap, beat: int | None
):
    """Steps from `start` on, keys `low` … `high`, and the names of some keys."""
    unit = beat or 1
    edges = (start / unit, (start + len(roll)) / unit, low - 0.5, high + 0.5)
    shown = roll[:, low : high + 1].T
    image = axes.imshow(
        shown, origin="lower", aspect="auto", extent=edges, cmap=colours, vmin=0, vmax=1, interpolation="nearest"
    )
    every_c = [key for key in range(low, high + 1) if (LOWEST + key) % 12 == 0]
    named = every_c if len(every_c) > 1 else range(low, high + 1, 2)
    axes.set_yticks(list(named), [pitch_name(key) for key in named])
    for key in every_c:
        axes.axhline(key - 0.5, color=GREY, lw=0.4, zorder=0.5)
    return image


def _range(rolls: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest key to show."""
    keys = np.flatnonzero((rolls > 0.05).any(0))
    if not len(keys):
        return 0, rolls.shape[1] - 1
    return max(0, int(keys[0]) - _MARGIN), min(rolls.shape[1] - 1, int(keys[-1]) + _MARGIN)


def _time(steps_per_beat: int | None) -> str:
    return "beats" if steps_per_beat else "steps"
