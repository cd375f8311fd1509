"""Laws of a whole path of latents, one step after another, on Pyro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Laplace, Normal

from ...models.sequence import State, Step
from ..windows import Carry
from .analytic import peel
from .precision import _Gathering

Law = Callable[..., Any]

_STACKED = (Normal, Laplace)
"""Families whose laws of all steps are put together from those of each; others are asked for once more."""


class Path:
    """The states of a step along a path of latents.

    Args:
        step: the story's.
        x: the data (T, B, D).
        known: paths drawn by programs of the same run, so that the model does not run the guide's recurrence again.
        carry: what another window left, and where this one leaves its last state; None: there is no other.
    """

    def __init__(self, step: Step, x: Tensor, known: list[Any], carry: Carry | None = None) -> None:
        self.step, self.x, self.known, self.carry = step, x, known, carry

    @cached_property
    def first(self) -> State:
        """h_1 (B, H), the same for all particles, or what another window left of each (…, B, H)."""
        start = None if self.carry is None else self.carry.start
        return self.step.start(tuple(self.x.shape[1:2])) if start is None else start

    def latents(self, law: Law, reading: Tensor | None = None) -> Unrolled:
        """z_1 … z_T with z_t ~ law(h_t), or law(h_t, e_t), e_t step t of `reading` (T, B, …)."""
        return Unrolled(self, law, reading, tuple(self.x.shape[:2]))

    def along(self, z: Tensor) -> tuple[State, Tensor]:
        """h_1 … h_T along z (…, T, B, Z), each (…, T, B, H), and v_1 … v_T, what the step reads of z."""
        for step, path, found in self.known:
            if path is z and type(step) is type(self.step):
                return found
        steps = iter(z.unbind(-3))
        found, _ = self.run(tuple(z.shape[:-3]), lambda *_: (next(steps), None))
        self.known.append((self.step, z, found))
        return found

    def run(
        self,
        particles: tuple[int, ...],
        draw: Callable[[State, int, Tensor | None], tuple[Tensor, Any]],
        reading: Tensor | None = None,
    ) -> tuple[tuple[State, Tensor], list[tuple[Tensor, Any]]]:
        """`along` the latents that `draw` gives of h_t, t and e_t of `reading` (T, …), and what it gives."""
        steps, rows = self.x.shape[:2]
        h = (self.carry or Carry()).first((*particles, rows), self.step.start)
        inputs = self.step.inputs(self.x, self.first)
        states, read, drawn = [], [], []
        with _Gathering(steps) as loop:
            along = ((None,) * steps if part is None else loop.parts(part) for part in (inputs, reading))
            for time, (u, e) in enumerate(zip(*along, strict=True)):
                states.append(h)
                drawn.append(draw(h, time, e))
                read.append(self.step.read(drawn[-1][0]))
                if time < steps - 1 or self.carry is not None:
                    h = _over_rows(self.step.next(h, read[-1], u), (*particles, rows))
        if self.carry is not None:
            self.carry.last = h
        return (_stacked(states), torch.stack(read, -3)), drawn


class Unrolled(TorchDistribution):
    """q(z_1 … z_T) or p(z_1 … z_T): z_t ~ law(h_t), h_{t+1} = f(h_t, z_t). Batch (…, T, B), event (Z,).

    A draw runs the loop; `given` is the law of every step at a path, with which all else is computed at once. noise: ε
    (…, T, B, Z) of a draw to come, whose steps are loc + scale · ε where they are normal; None: of the generator.
    """

    arg_constraints: Mapping[str, Any] = {}
    support: Any = constraints.real_vector
    has_rsample = True

    def __init__(self, path: Path, law: Law, reading: Tensor | None, shape: tuple[int, ...]) -> None:
        self.path, self.law, self.reading = path, law, reading
        self.noise: Tensor | None = None
        self.drawn: tuple[Tensor, Any] | None = None
        super().__init__(torch.Size(shape), torch.Size((path.step.dim,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Unrolled:
        return Unrolled(self.path, self.law, self.reading, tuple(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        particles = (*sample_shape, *self.batch_shape[:-2])
        rows = (*particles, self.batch_shape[-1])
        noise = None if self.noise is None else self.noise.unbind(-3)

        def draw(h: State, time: int, e: Tensor | None) -> tuple[Tensor, Any]:
            nonlocal noise
            fn = self.law(h) if e is None else self.law(h, e)
            fn = fn if fn.batch_shape == rows else fn.expand(rows)
            base, _ = peel(fn)
            if isinstance(base, Normal):  # without the overhead of `rsample`
                if noise is None:
                    noise = base.loc.new_empty((self.batch_shape[-2], *fn.shape())).normal_().unbind(0)
                return torch.addcmul(base.loc, base.scale, noise[time].to(base.loc)), fn
            return (fn.rsample() if fn.has_rsample else fn.sample()), fn

        along, drawn = self.path.run(particles, draw, self.reading)
        z = torch.stack([one for one, _ in drawn], -3)
        laws = [fn for _, fn in drawn]
        if isinstance(peel(laws[0])[0], _STACKED):
            self.drawn = z, _together(laws, self.batch_shape)
        self.path.known.append((self.path.step, z, along))
        return z

    def given(self, z: Tensor) -> Any:
        """The laws of z_1 … z_T at the states along z: a distribution of the same batch and event."""
        if self.drawn is not None and self.drawn[0] is z:
            return self.drawn[1]
        states, _ = self.path.along(z)
        fn = self.law(states) if self.reading is None else self.law(states, self.reading)
        return fn if fn.batch_shape == z.shape[:-1] else fn.expand(z.shape[:-1])

    def log_prob(self, value: Tensor) -> Tensor:
        return self.given(value).log_prob(value)


def given(site: Mapping[str, Any]) -> Mapping[str, Any]:
    """The site with the law that its distribution is at its value."""
    if isinstance(site["fn"], Unrolled):
        return {**site, "fn": site["fn"].given(site["value"])}
    return site


def _over_rows(state: State, rows: tuple[int, ...]) -> State:
    """Each part (…, H) for all particles: a state that holds data alone has no axis for them."""
    if isinstance(state, tuple):
        return tuple(_over_rows(part, rows) for part in state)
    return state if state.shape[:-1] == rows else state.expand(*rows, -1)


def _stacked(states: list[State]) -> State:
    if isinstance(states[0], tuple):
        return tuple(torch.stack(part, -3) for part in zip(*states, strict=True))
    return torch.stack(states, -3)


def _together(laws: list[Any], batch_shape: tuple[int, ...]) -> Any:
    bases = [peel(law)[0] for law in laws]
    loc, scale = (torch.stack([getattr(base, name) for base in bases], -3) for name in ("loc", "scale"))
    return type(bases[0])(loc, scale, validate_args=False).to_event(1).expand(batch_shape)
