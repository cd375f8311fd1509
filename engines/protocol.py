"""What an engine supplies to the one loop of `inference/fit.py`: about a screen per method.

`State` is opaque to the loop: what the next step needs. `Info` is what a person wants to see: sums over the real rows
of the batch, in nats, as scalars that `float` understands (reading one may wait for the device).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from .filtering import Filtered, Filtering
from .terms import Terms

Batch = Mapping[str, np.ndarray]
State = Any
Cache = Any
Info = dict[str, Any]


@dataclass(frozen=True)
class OptimiserSpec:
    """One side's optimiser, as the recipe names it; the learning rate comes with every step."""

    kind: str = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0


@dataclass(frozen=True)
class Objective:
    """A function of the terms: `(terms, weight) → (B,)` or `Sides`, to be minimised, in nats per datum.

    particles: S, draws from the guide per step. needs: the fields of `Terms` it reads beyond those always there; and
    "enumeration", for every value of the one, discrete latent in place of draws. pathwise: whether its gradient passes
    through the guide's draws. additive: whether it is a sum over latent sites and data, so that a latent may be shared
    by all data. filtering: of a particle filter, where `needs` names "evidence".
    """

    function: Callable[[Terms, Any], Any]
    particles: int = 1
    needs: frozenset[str] = frozenset()
    pathwise: bool = True
    additive: bool = True
    filtering: Filtering | None = None


@dataclass(frozen=True)
class Refinement:
    """Steps of gradient descent on a datum's variational parameters, as `engines/refinement.py` takes them."""

    steps: int
    learning_rate: float
    momentum: float
    clip: float
    backpropagate: bool


@dataclass(frozen=True)
class Settings:
    """What realising a pair needs besides the pair.

    clip: bound on the global gradient norm over both sides, or None. consistency: λ of KL(q(z | t(x)) ‖ q(z | x)), for
    batches that hold t(x) (`engines/consistency.py`). truncate: steps of a window of truncated backpropagation
    (`engines/windows.py`).
    """

    data_size: int
    objective: Objective
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    precision: str = "float32"
    optimisers: Mapping[str, OptimiserSpec] | None = None
    clip: float | None = None
    refinement: Refinement | None = None
    consistency: float | None = None
    truncate: int | None = None


SIDES = ("model", "guide")


class Control(NamedTuple):
    """What changes from step to step, computed by the loop: pure functions of the step, and what the loss carries.

    weight: the KL weight, or where the objective carries numbers from step to step a mapping of it and of them, as the
    objective's function takes it; learning_rate: side ("model", "guide") → rate. sides: those that move; weights and
    optimiser slots of the other stay, the gradient's norm is of these, and steps of one side have a stream of noise of
    their own.
    """

    step: int
    weight: float | Mapping[str, float]
    learning_rate: Mapping[str, float]
    sides: tuple[str, ...] = SIDES


def noise_of(sides: tuple[str, ...]) -> str:
    """The purpose (`seeds.derive`) of the noise of steps that move these sides."""
    return "step" if sides == SIDES else f"step of the {' and '.join(sides)}"


class Posterior(NamedTuple):
    """q(z | x) of one latent site for the rows of a batch, as NumPy.

    family: "normal" for a diagonal normal with loc and scale (B, D); otherwise the library's class name, with loc the
    mean and scale the standard deviation, NaN where the family has none in closed form.
    """

    family: str
    loc: np.ndarray
    scale: np.ndarray


class Program(Protocol):
    """A pair realised on one engine."""

    compilations: int
    """Shapes compiled for training so far, one by one for each choice of sides (without a compiler: 0)."""

    shared: tuple[str, ...]
    """Latent sites outside the data plate, known after `init`: one draw for all data."""

    def init(self, batch: Batch) -> State:
        """Weights, optimiser slots; runs both programs once and refuses pairs whose sites do not match."""
        ...

    def step(self, state: State, batches: Sequence[Batch], control: Control) -> tuple[State, Info]:
        """One update of `control.sides` from the mean gradient of `batches` (several: gradient accumulation).

        Info holds `objective`, `log_likelihood/SITE`, `kl/SITE`, `rows`, and, before clipping, `gradient_norm` and
        `gradient_norm/PARAMETER`. An update whose objective or gradient is not finite is not applied.
        """
        ...

    def terms(self, state: State, batch: Batch, *, seed: int, particles: int = 1, drawn: bool = False) -> Terms:
        """The terms without dropout, as float64 NumPy, at the latents that `draws` gives for the same seed.

        Normal latents come from `draws.standard_normal`: the other engine draws the same. Where the objective needs
        "enumeration", at every value of the latent with its share, unless `drawn`.
        """
        ...

    def log_weights(self, state: State, batch: Batch, *, seed: int, particles: int, rows: int) -> np.ndarray:
        """log p(x, z) − log q(z | x), (S, B) float64; the guide runs once, the model on at most `rows` rows at a time.

        Refuses a latent that is shared by all data: no weight of a single datum bounds anything then.
        """
        ...

    def filter(
        self,
        state: State,
        batch: Batch,
        *,
        seed: int,
        particles: int,
        filtering: Filtering,
        observed: np.ndarray | None = None,
    ) -> Filtered:
        """A particle filter over a batch of sequences, as float64 NumPy; pairs made of steps.

        observed: (B, T), false where x_t is not known: its particles are drawn from the model, which forecasts beyond
        the data, fills gaps between them, and generates where nothing is known. Both engines draw the same normal
        latents and ancestors for a seed.
        """
        ...

    def posterior(self, state: State, batch: Batch) -> dict[str, Posterior]:
        """q(z | x) of every latent site whose distribution does not hang on another latent's draw."""
        ...

    def draws(self, state: State, batch: Batch, *, seed: int, particles: int) -> dict[str, np.ndarray]:
        """Draws of every latent from the guide: site → (S, B, …); a time-indexed site is one array (S, B, T, …)."""
        ...

    def weights(self, state: State) -> dict[str, np.ndarray]:
        """Engine-neutral name → array: what `weights.safetensors` holds."""
        ...

    def load_weights(self, state: State, weights: Mapping[str, np.ndarray]) -> State:
        """Replaces all weights; refuses a missing, unknown or misshapen array by name."""
        ...

    def slots(self, state: State) -> dict[str, np.ndarray]:
        """The optimisers' arrays by name."""
        ...

    def load_slots(self, state: State, slots: Mapping[str, np.ndarray]) -> State: ...

    def sides(self, state: State) -> dict[str, str]:
        """Weight name → "model" or "guide"."""
        ...

    def chain(self, state: State, batch: Batch, *, seed: int, draws: int, warmup: int) -> dict[str, np.ndarray]:
        """Draws from p(z | x) by the library's NUTS, site → (S, B, …), after `warmup` that are thrown away.

        One chain moves the latents of all rows together, each row in its own posterior; no row may be filler. Refuses a
        latent that is not all of R^D, or not the data plate's alone.
        """
        ...

    def log_joint(self, state: State, batch: Batch, latents: Mapping[str, np.ndarray]) -> np.ndarray:
        """log p(x, z), (S, B) float64, at latents of `chain`."""
        ...

    def prior_draws(self, state: State, *, seed: int, rows: int, lengths: np.ndarray | None = None) -> np.ndarray:
        """(rows, Z) draws from p(z); text pairs with one latent. Of what a decoder attends to (rows, K, p + 1), given the
        sentences' lengths n (rows,).
        """
        ...

    def mean_measures(self, state: State, batch: Batch) -> dict[str, np.ndarray]:
        """The mean of q(F | x) of each latent, F what a decoder or a block of the encoder attends to: log α, μ and σ² of each component (B, M, 2 p + 1), or μ after a 0 of each vector (B, M, p + 1);
        `models.measures.NEVER` first where there is none. Of latents that hang on each other, with the others at their
        means.
        """
        ...

    def attention(self, state: State, batch: Batch, measure: np.ndarray) -> np.ndarray:
        """What each word of a sentence weighs the components of a mean measure by when it is decoded from it, told the words
        before: (layers, B, heads, T, M).
        """
        ...

    def decode_start(self, state: State, latent: np.ndarray | None, rows: int, steps: int) -> Cache:
        """The decoder's state before the first word, for `rows` sentences with latents (rows, Z), or draws or means of
        measures (rows, K, …); `steps` words at most.
        """
        ...

    def decode_step(self, state: State, cache: Cache, tokens: np.ndarray) -> tuple[Cache, np.ndarray]:
        """One word further: tokens (rows,) → logits (rows, V) float32 for the next."""
        ...

    def decode_reorder(self, cache: Cache, index: np.ndarray) -> Cache:
        """The cache of rows `index`, for beams."""
        ...
