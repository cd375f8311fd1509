"""Checkpoints: all that the next step of a run needs, in one file, and what may change when a run goes on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from ..engines.protocol import Program, State
from ..guides import Pair
from ..models.errors import BadInput
from .files import read_arrays, write_arrays
from .recipe import Recipe, differences, parse, read

ALL_DONE = "all steps done"
MAY_CHANGE = ("fit.epochs", "fit.max_steps")
_NAME = "state.safetensors"


@dataclass
class Position:
    """Where a run stands, besides weights and optimiser slots: everything the next step needs, as plain JSON."""

    step: int = 0
    best: float = math.inf
    best_epoch: int = 0
    since_best: int = 0
    rate: float = 1.0
    decays: int = 0
    seconds: float = 0.0
    finished: str = ""
    lagging: bool = True
    information: float = -math.inf
    inner: int = 0
    window: dict[str, float] = field(default_factory=dict)
    carried: dict[str, float] = field(default_factory=dict)


def save(folder: Path, program: Program, state: State, position: Position, fingerprint: str) -> None:
    """One file, so that a kill never leaves weights of one step beside optimiser slots of another."""
    arrays = {f"weight/{name}": array for name, array in program.weights(state).items()}
    arrays |= {f"slot/{name}": array for name, array in program.slots(state).items()}
    write_arrays(folder / _NAME, arrays, dataclasses.asdict(position) | {"fingerprint": fingerprint})


def restore(folder: Path, program: Program, state: State, fingerprint: str) -> tuple[State, Position]:
    """What `save` wrote, put into `state`.

    Raises:
        BadInput: a file of the run is missing, damaged or of other weights, or the data are not those of the run.
    """
    stored, about = read_arrays(folder / _NAME)
    read_arrays(folder / "weights.safetensors", arrays=False)
    if about.get("fingerprint") != fingerprint:
        raise BadInput(f"the data have changed since {folder} was begun: a run goes on with the same data only")
    names = {f.name for f in dataclasses.fields(Position)}
    weights = {key.removeprefix("weight/"): a for key, a in stored.items() if key.startswith("weight/")}
    slots = {key.removeprefix("slot/"): a for key, a in stored.items() if key.startswith("slot/")}
    try:
        state = program.load_slots(program.load_weights(state, weights), slots)
    except BadInput as error:
        raise BadInput(f"{folder / _NAME}: {error}") from None
    return state, Position(**{key: value for key, value in about.items() if key in names})


def refuse_other_settings(folder: Path, recipe: Recipe, pair: Pair) -> None:
    """A run goes on under its own recipe, but for how long."""
    stored = parse(read(folder / "recipe.toml")[0], pair=pair, origin=str(folder / "recipe.toml"))
    refuse_empirical(stored)
    for key, values in differences(stored, recipe).items():
        if key not in MAY_CHANGE:
            there, here = ("not set" if value is None else repr(value) for value in values)
            raise BadInput(
                f"{key} is {there} in {folder} and {here} now: a run goes on with the settings it began with, "
                f"only {' and '.join(MAY_CHANGE)} may change"
            )


def refuse_empirical(recipe: Recipe) -> None:
    """No training fills an empirical prior, and none moves it."""
    if getattr(getattr(recipe.model, "prior", None), "empirical", False):
        raise BadInput(
            "a prior with empirical = true is filled by guidebook regularise, whose runs are for use: fit neither begins nor "
            "resumes one, and without model.prior.empirical it would be right"
        )


def kept(folder: Path) -> str:
    """What there is to go back to, for a message."""
    if not (folder / _NAME).exists():
        return "no checkpoint was written yet"
    return f"the checkpoint of step {read_arrays(folder / _NAME, arrays=False)[1]['step']} is kept in {folder}"
