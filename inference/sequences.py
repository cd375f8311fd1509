"""What a model of sequences is for: generate, forecast, impute, smooth.

A particle is a path: it is traced back through its ancestors from the last step, where its weight is of the whole path.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..engines.filtering import Filtering
from ..engines.seeds import derive
from ..models.errors import BadInput
from .completed import Completed, Smoothed
from .particles import descent, filtered, followed, refuse_too_many, shares

Array = np.ndarray

PARTICLES, REPEATS = 256, 8


def generate(run: Any, n: int = 1, steps: int | None = None, seed: int = 0) -> list[Array]:
    """n sequences from the model, (T, D) each in its units (`sequence_files.restored` gives those of the source).

    steps: T; by default the median of the training sequences.

    Raises:
        BadInput: the run is not of sequences; n or steps below 1; more than the memory holds.
    """
    refuse_others(run, "generate")
    steps = int(np.median(run.dataset.splits["train"].lengths)) if steps is None else steps
    if n < 1 or steps < 1:
        raise BadInput(f"{n} sequences of {steps} steps: at least 1 of 1 step would be right")
    refuse_too_many(run, steps=steps, particles=1, rows=n)
    x = np.zeros((n, steps, run.dataset.width))
    found = filtered(run, x, np.zeros((n, steps), bool), particles=1, seed=derive(seed, "generate"))
    return list(found.data[:, 0].swapaxes(0, 1))


def forecast(
    run: Any,
    x: int | Array = 0,
    *,
    split: str = "test",
    given: int | None = None,
    steps: int | None = None,
    particles: int = PARTICLES,
    filtering: Filtering | None = None,
    seed: int = 0,
) -> Completed:
    """What follows the first `given` steps of x.

    x: the position of a sequence in the split, or a sequence (T, D) in the model's units.
    given: by default half of x. steps: how many to forecast, beyond the end of x too; by default up to its end.

    Raises:
        BadInput: the run is not of sequences; given is not among 1 … T; no step to forecast; no such sequence.
    """
    refuse_others(run, "forecast")
    x, name = _sequence(run, x, split)
    given = max(1, len(x) // 2) if given is None else given
    if not 1 <= given <= len(x):
        raise BadInput(f"{name} has {len(x)} steps and {given} were to be given: 1 to {len(x)} would be right")
    steps = len(x) - given if steps is None else steps
    if steps < 1:
        raise BadInput(f"{steps} steps to forecast after step {given} of {name}: at least 1 would be right")
    refuse_too_many(run, steps=given + steps, particles=particles, rows=1)
    whole = np.full((given + steps, x.shape[1]), np.nan)
    whole[: len(x)] = x[: given + steps]
    about = {"given": given, **_about(run, name, seed)}
    return _completed(run, whole, np.arange(len(whole)) < given, particles, filtering, derive(seed, "forecast"), about)


def impute(
    run: Any,
    x: int | Array,
    observed: Array,
    *,
    split: str = "test",
    particles: int = PARTICLES,
    filtering: Filtering | None = None,
    seed: int = 0,
) -> Completed:
    """The steps of x at which observed (T,) is false, given the others before and after them.

    x: as `forecast` takes it; what it holds at the hidden steps is kept as the truth, and NaN says that it is unknown.

    Raises:
        BadInput: the run is not of sequences; observed is not T truth values, or hides all steps or none.
    """
    refuse_others(run, "impute")
    observed = np.asarray(observed)
    x, name = _sequence(run, x, split, observed)
    if observed.shape != (len(x),) or observed.dtype != bool:
        raise BadInput(f"observed is {observed.dtype} of shape {observed.shape}: bool, ({len(x)},), would be right")
    if observed.all() or not observed.any():
        cure = "generate draws sequences" if not observed.any() else "hide a step"
        raise BadInput(f"{int(observed.sum())} of {len(x)} steps of {name} are observed: {cure}")
    return _completed(run, x, observed, particles, filtering, derive(seed, "impute"), _about(run, name, seed))


def smooth(
    run: Any,
    x: int | Array,
    *,
    split: str = "test",
    particles: int = PARTICLES,
    repeats: int = REPEATS,
    filtering: Filtering | None = None,
    seed: int = 0,
) -> Smoothed:
    """p(z | x) of a sequence, and its evidence, from `repeats` independent filters. x: as `forecast` takes it.

    Raises:
        BadInput: the run is not of sequences, or has no latent; repeats is below 1; more particles than the memory holds.
    """
    refuse_others(run, "smooth")
    if run.pair.guide is None:
        raise BadInput(f"the run {run.folder} is of the pair {run.pair.name!r}, which has no latent to smooth")
    x, name = _sequence(run, x, split)
    if repeats < 1:
        raise BadInput(f"{repeats} filters: at least 1 would be right")
    rows = np.broadcast_to(x, (repeats, *x.shape))
    seed_ = derive(seed, "smooth")
    found = filtered(run, rows, np.ones(rows.shape[:2], bool), particles=particles, seed=seed_, filtering=filtering)
    lines, spread = descent(found.ancestors), found.log_evidence.std(ddof=1) if repeats > 1 else None
    return Smoothed(
        z=followed(found.latents, lines).transpose(2, 1, 0, 3),
        weights=shares(found.log_weight).T,
        distinct=np.array([sum(len(set(row)) for row in step.T.tolist()) for step in lines]),
        log_evidence=float(found.log_evidence.mean()),
        log_evidence_standard_error=None if spread is None else float(spread / np.sqrt(repeats)),
        about=_about(run, name, seed),
    )


def refuse_others(run: Any, command: str) -> None:
    """
    Raises:
        BadInput: the run is not of sequences.
    """
    if run.pair.steps is None:
        raise BadInput(
            f"the run {run.folder} is of the pair {run.pair.name!r}: {command} needs a pair of sequences, vrnn say"
        )


def _completed(run, x, observed, particles, filtering, seed, about) -> Completed:
    found = filtered(run, x[None], observed[None], particles=particles, seed=seed, filtering=filtering)
    paths = followed(found.data, descent(found.ancestors))[:, :, 0].swapaxes(0, 1)
    truth = np.where(observed[:, None], np.nan, x)
    evidence = float(found.log_evidence[0])
    return Completed(paths, shares(found.log_weight)[:, 0], observed, truth, evidence, run.dataset.about, about)


def _about(run: Any, name: str, seed: int) -> dict[str, Any]:
    return {"pair": run.pair.name, "engine": run.recipe.engine, "of": name, "seed": seed}


def _sequence(run: Any, x: int | Array, split: str, observed: Array | None = None) -> tuple[Array, str]:
    """(T, D) float64, and how messages call it; a user's own is checked, at the observed steps."""
    if isinstance(x, (int, np.integer)):
        if split not in run.dataset.splits:
            raise BadInput(f"there is no split {split!r}: choose one of {', '.join(run.dataset.splits)}")
        sequences = run.dataset.splits[split]
        if not 0 <= x < len(sequences):
            raise BadInput(
                f"the {split} split has {len(sequences)} sequences and no row {x}: 0 to {len(sequences) - 1}"
            )
        return sequences[int(x)].astype(np.float64), f"row {x} of the {split} split"
    x = np.asarray(x)
    if x.ndim != 2 or x.shape[1] != run.dataset.width or not len(x) or x.dtype.kind not in "fiub":
        raise BadInput(f"a sequence of shape {x.shape}: numbers, (steps, {run.dataset.width}), would be right")
    known = x if observed is None or observed.shape != x.shape[:1] else x[observed.astype(bool)]
    if not np.isfinite(known).all():
        raise BadInput("a sequence has a step that is not finite: impute fills what observed = False hides")
    if len(known) and (likelihood := getattr(run.recipe.model, "likelihood", None)):
        likelihood.refuse(known)
    return x.astype(np.float64), "a given sequence"
