"""The pictures of a diagnosis: Matplotlib `Figure`s without pyplot: no global state or style is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from .measures import KEPT_FROM

# Okabe and Ito's colours, told apart by all readers.
BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#B8B8B8", "#333333"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DPI = 144


def training(train: pd.DataFrame, valid: pd.DataFrame, unit: str = "nats per datum") -> Figure:
    """Objective and −ELBO, reconstruction, KL with its weight, over the steps. Where a penalty is charged in place of a
    KL there is no ELBO, and the objective stands on both sides.

    Lines are the training data with dropout and, where the recipe has it, word dropout, smoothed over a
    twentieth of the run, the raw averages behind them; dots the validation data without dropout. Both tables
    are indexed by step (`Run.history`).
    """
    figure = Figure(figsize=(11, 3.5), layout="constrained")
    whole, words, kl = figure.subplots(1, 3)
    _curve(whole, train["objective"], GREY, "objective, training")
    bound = bool(np.isfinite(train["elbo"].to_numpy(dtype=float)).all())
    charge = "KL" if bound else "penalty"
    if bound:
        _curve(whole, -train["elbo"], BLUE, "−ELBO, training")
    _curve(words, train["reconstruction"], GREEN, "−E log p(x | z), training")
    _curve(kl, train["kl"], ORANGE, f"{charge}, training")
    if len(valid):
        if bound:
            _dots(whole, -valid["elbo"], BLUE, "−ELBO, validation")
        else:
            _dots(whole, valid["objective"], GREY, "objective at its final weight, validation")
        _dots(words, valid["reconstruction"], GREEN, "−E log p(x | z), validation")
        _dots(kl, valid["kl"], ORANGE, f"{charge}, validation")
    for axes, title in ((whole, "objective"), (words, "reconstruction"), (kl, charge)):
        _window(axes, from_zero=axes is kl)
        plain(axes, title, "step", unit)
    _weight(kl, train["weight"])
    for axes in (whole, words, kl):
        axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def kl_bars(kl: Sequence[float], active: Sequence[bool], unit: str = "nats per datum") -> Figure:
    """KL of every dimension, largest first; active ones in colour."""
    values, colours = np.asarray(kl), np.where(np.asarray(active), BLUE, GREY)
    order, places = np.argsort(-values, kind="stable"), np.arange(len(values))
    figure = Figure(figsize=(max(5.0, 1.6 + 0.24 * len(values)), 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(places, values[order], color=colours[order], width=0.8)
    shown = places if len(values) <= 64 else places[:: len(values) // 32]
    axes.set_xticks(shown, [str(dimension) for dimension in order[shown]], fontsize=8)
    plain(axes, f"{int(np.sum(active))} of {len(values)} dimensions active", "dimension", "KL, nats per datum")
    axes.xaxis.set_tick_params(length=0)
    return figure


def latent(z: np.ndarray, loc: np.ndarray, scale: np.ndarray, kl: Sequence[float]) -> Figure:
    """The aggregate posterior beside a standard normal prior.

    Left: one draw of each datum in the two dimensions of the largest KL, over the prior's 1, 2 and 3 σ.
    Right: the variance of every dimension of q(z), split into that of the means, which carries information,
    and the mean of the variances, which is noise; together they should come to the prior's 1.
    z, loc, scale: (N, D).
    """
    order = np.argsort(-np.asarray(kl), kind="stable")
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    cloud, bars = figure.subplots(1, 2, width_ratios=(1, 1.6))
    _cloud(cloud, z, order[:2])
    _variances(bars, loc[:, order].var(0), (scale[:, order] ** 2).mean(0), order)
    return figure


def comparison(histories: Mapping[str, pd.DataFrame], unit: str = "nats per datum") -> Figure:
    """The unweighted −ELBO and the KL on the validation data over the seconds of training, one colour a run."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    whole, kl = figure.subplots(1, 2)
    for number, (name, valid) in enumerate(histories.items()):
        style = {"color": COLOURS[number % len(COLOURS)], "marker": "o", "ms": 4, "lw": 1.6, "label": name}
        whole.plot(valid["seconds"], -valid["elbo"].astype(float), **style)
        kl.plot(valid["seconds"], valid["kl"], **style)
    plain(whole, "−ELBO, validation", "seconds of training", unit)
    plain(kl, "KL, validation", "seconds of training", unit)
    whole.legend(frameon=False, fontsize=8)
    return figure


def interpolation(
    title: str, weights: Sequence[float], bleu: Mapping[str, Sequence[float]], novel: Sequence[float]
) -> Figure:
    """BLEU to either end, and the share of new sentences, over the weight of the second end."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK)
    near, new = figure.subplots(1, 2)
    for (end, values), colour in zip(bleu.items(), COLOURS, strict=False):
        near.plot(weights, values, color=colour, marker="o", ms=4, lw=1.6, label=end)
    new.plot(weights, novel, color=GREEN, marker="o", ms=4, lw=1.6)
    near.set_ylim(0, 105)
    new.set_ylim(0, 1.05)
    plain(near, "BLEU to either end", "weight of b", "mean BLEU of sentences")
    plain(new, "equal to neither end nor its reconstruction", "weight of b", "share")
    near.legend(frameon=False, fontsize=8)
    return figure


def bottleneck(tokens: Sequence[str], pseudo_counts: np.ndarray, prior: float, attention: np.ndarray) -> Figure:
    """Pseudo-counts of the prior component and of every token, on a logarithmic scale, and beneath them what each decoded
    word attends to, (words, 1 + tokens)."""
    columns = ["prior", *tokens]
    figure = Figure(figsize=(max(5.0, 0.5 * len(columns) + 1.5), 6.0), layout="constrained")
    counts, read = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    counts.bar(range(len(columns)), [prior, *pseudo_counts], color=[GREY, *[BLUE] * len(tokens)])
    counts.axhline(KEPT_FROM, color=ORANGE, lw=1, ls="--")
    counts.set_yscale("log")
    shares = read.imshow(attention, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(shares, ax=read, label="share")
    plain(counts, "pseudo-counts; kept above the dashed line", "", "α")
    plain(read, "attention of each decoded word (rows) to the components", "", "")
    read.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
    read.set_yticks(range(len(tokens)), tokens)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    FigureCanvasAgg(figure)
    target = BytesIO()
    figure.savefig(target, format="png", dpi=DPI, facecolor="white")
    return target.getvalue()


def plain(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and names of the axes, and no more lines than needed."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8)
    if axes.get_xlabel() == "step":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _cloud(axes: Axes, z: np.ndarray, dimensions: np.ndarray) -> None:
    first = z[:, dimensions[0]]
    second = z[:, dimensions[1]] if len(dimensions) > 1 else np.zeros(len(z))
    for radius in (1, 2, 3):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=GREY, lw=1))
    axes.scatter(first, second, s=7, color=BLUE, alpha=0.45, linewidths=0)
    reach = 1.05 * max(3.2, float(np.abs([first, second]).max()))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    names = [f"dimension {dimension}" for dimension in dimensions]
    plain(axes, "draws, and the prior's 1, 2, 3 σ", names[0], names[1] if len(names) > 1 else "")


def _variances(axes: Axes, means: np.ndarray, noise: np.ndarray, order: np.ndarray) -> None:
    places = np.arange(len(means))
    axes.bar(places, means, color=BLUE, width=0.8, label="variance of the means")
    axes.bar(places, noise, bottom=means, color=GREY, width=0.8, label="mean of the variances")
    axes.axhline(1.0, color=INK, lw=1, ls=":", label="prior")
    shown = places if len(means) <= 64 else places[:: len(means) // 32]
    axes.set_xticks(shown, [str(dimension) for dimension in order[shown]], fontsize=8)
    axes.set_ylim(0, 1.3 * max(1.0, float((means + noise).max())))
    plain(axes, "variance of q(z) by dimension", "dimension, by falling KL", "")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def _curve(axes: Axes, values: Any, colour: str, name: str) -> None:
    axes.plot(values.index, values, color=colour, lw=0.8, alpha=0.3)
    axes.plot(values.index, _smoothed(values), color=colour, lw=1.8, label=name)


def _dots(axes: Axes, values: Any, colour: str, name: str) -> None:
    axes.plot(values.index, values, "o", color=colour, ms=5, mec="white", mew=0.7, label=name)


def _smoothed(values: Any) -> np.ndarray:
    """Centred means over a twentieth of the points, five at least, each weighted by the steps it is of."""
    steps = np.diff(values.index.to_numpy(float), prepend=0.0)
    reach = max(5, len(values) // 20) // 2
    ends = [(max(0, i - reach), i + reach + 1) for i in range(len(values))]
    series = values.to_numpy(float)
    return np.array([np.average(series[a:b], weights=steps[a:b]) for a, b in ends])


def _window(axes: Axes, *, from_zero: bool) -> None:
    """Leaves the first steep descent out of the picture, so that the rest can be read; room for a legend on
    top."""
    lines = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    curves = [values for line, values in zip(axes.lines, lines, strict=True) if line.get_alpha() is None]
    late = np.concatenate([curve[len(curve) // 20 :] for curve in curves])
    late = late[np.isfinite(late)]
    if len(late):
        low, high = (0.0 if from_zero else float(np.nanmin(np.concatenate(lines)))), float(np.quantile(late, 0.98))
        span = max(high - low, 1e-9)
        axes.set_ylim(low if from_zero else low - 0.08 * span, high + 0.45 * span)


def _weight(axes: Axes, weight: Any) -> None:
    """The KL weight on an axis of its own, which reaches as far above it as the legend does."""
    axes.plot([], [], color=INK, lw=1, ls=":", label="KL weight (right)")
    twin = axes.twinx()
    twin.plot(weight.index, weight, color=INK, lw=1, ls=":")
    twin.set_ylim(0, 1.45 * max(1.0, float(weight.max())))
    twin.set_yticks([0.0, 0.5, 1.0])
    twin.spines[["top", "left"]].set_visible(False)
    twin.spines[["right", "bottom"]].set_color(GREY)
    twin.tick_params(colors=INK, labelsize=8)
