"""Laws of a whole path of latents, one step after another, on NumPyro."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from numpyro import handlers
from numpyro.distributions import Distribution, Laplace, Logistic, Normal, constraints

from ...models.sequence import State, Step
from ..windows import Carry
from .analytic import peel

Law = Callable[..., Any]

_STACKED = (Normal, Laplace, Logistic)
"""Families whose laws of all steps are put together from those of each; others are asked for once more."""


class Path:
    """The states of a step along a path of latents.

    Args:
        step: the story's.
        x: the data (T, B, D).
        known: paths drawn by programs of the same run, so that the model does not run the guide's recurrence again.
        carry: what another window left, and where this one leaves its last state; None: there is no other.
    """

    def __init__(self, step: Step, x: Array, known: list[Any], carry: Carry | None = None) -> None:
        self.step, self.x, self.known, self.carry = step, x, known, carry

    @cached_property
    def first(self) -> State:
        """h_1 (B, H), the same for all particles, or what another window left of each (…, B, H)."""
        start = None if self.carry is None else self.carry.start
        return self.step.start(tuple(self.x.shape[1:2])) if start is None else start

    def latents(self, law: Law, reading: Array | None = None) -> Unrolled:
        """z_1 … z_T with z_t ~ law(h_t), or law(h_t, e_t), e_t step t of `reading` (T, B, …)."""
        return Unrolled(self, law, reading, tuple(self.x.shape[:2]))

    def along(self, z: Array) -> tuple[State, Array]:
        """h_1 … h_T along z (…, T, B, Z), each (…, T, B, H), and v_1 … v_T, what the step reads of z."""
        for step, path, found in self.known:
            if path is z and type(step) is type(self.step):
                return found
        particles = tuple(z.shape[:-3])
        found, _ = self.run(particles, lambda h, one: (one, None), jnp.moveaxis(z, -3, 0), jax.random.key(0))
        self.known.append((self.step, z, found))
        return found

    def run(
        self, particles: tuple[int, ...], draw: Callable[[State, Any], tuple[Array, Any]], each: Any, key: Array
    ) -> tuple[tuple[State, Array], tuple[Array, Any]]:
        """`along` the latents that `draw` gives at each step of `each`, and what it gives.

        key: of networks that draw themselves, as in dropout.
        """
        steps, rows = self.x.shape[:2]
        h = (self.carry or Carry()).first((*particles, rows), self.step.start)
        inputs = self.step.inputs(self.x, self.first)

        def body(h: State, at: Any) -> tuple[State, Any]:
            key, one, u = at
            with handlers.seed(rng_seed=key):
                z, found = draw(h, one)
                v = self.step.read(z)
                after = self.step.next(h, v, u)
            # a state that holds data alone has no axis for the particles
            return jax.tree.map(lambda leaf, own: jnp.broadcast_to(own, leaf.shape), h, after), ((h, v), (z, found))

        last, (along, drawn) = lax.scan(body, h, (jax.random.split(key, steps), each, inputs))
        if self.carry is not None:
            self.carry.last = last
        return jax.tree.map(_time_last, (along, drawn))


class Unrolled(Distribution):
    """q(z_1 … z_T) or p(z_1 … z_T): z_t ~ law(h_t), h_{t+1} = f(h_t, z_t). Batch (…, T, B), event (Z,).

    A draw runs the loop; `given` is the law of every step at a path, with which all else is computed at once. noise: ε
    (…, T, B, Z) of a draw to come, whose steps are loc + scale · ε where they are normal; None: of the generator.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support: Any = constraints.real_vector

    def __init__(self, path: Path, law: Law, reading: Array | None, shape: tuple[int, ...], masked: Any = None) -> None:
        self.path, self.law, self.reading, self.masked = path, law, reading, masked
        self.noise: Array | None = None
        self.drawn: tuple[Array, Any] | None = None
        super().__init__(shape, (path.step.dim,), validate_args=False)

    def expand(self, batch_shape: Any) -> Unrolled:
        return Unrolled(self.path, self.law, self.reading, tuple(batch_shape), self.masked)

    def mask(self, mask: Any) -> Unrolled:
        both = mask if self.masked is None else mask & self.masked
        return Unrolled(self.path, self.law, self.reading, self.batch_shape, both)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        particles = (*sample_shape, *self.batch_shape[:-2])
        steps, rows = self.batch_shape[-2:]
        of_networks, of_draws = jax.random.split(key)
        noise = None if self.noise is None else jnp.moveaxis(self.noise, -3, 0)
        each = jax.random.split(of_draws, steps), noise, self.reading
        family = None

        def draw(h: State, at: Any) -> tuple[Array, Any]:
            nonlocal family
            key, noise, reading = at
            fn = self.law(h) if reading is None else self.law(h, reading)
            base, _, _ = peel(fn)
            family = type(base)
            shape = (*particles, rows, *self.event_shape)
            fn = fn if fn.batch_shape == shape[:-1] else fn.expand(shape[:-1])
            found = None
            if family in _STACKED:
                found = tuple(jnp.broadcast_to(part, shape) for part in (base.loc, base.scale))
                if noise is not None and family is Normal:
                    return found[0] + found[1] * noise, found
            return fn.sample(key), found

        along, (z, found) = self.path.run(particles, draw, each, of_networks)
        if found is not None:
            self.drawn = z, self._masked(family(*found).to_event(1))  # pyright: ignore[reportOptionalCall]
        self.path.known.append((self.path.step, z, along))
        return z

    def given(self, z: Array) -> Any:
        """The laws of z_1 … z_T at the states along z: a distribution of the same batch and event."""
        if self.drawn is not None and self.drawn[0] is z:
            return self.drawn[1]
        states, _ = self.path.along(z)
        with handlers.seed(rng_seed=jax.random.key(0)):  # of networks that draw: a law is asked for outside the program
            fn = self.law(states) if self.reading is None else self.law(states, self.reading)
        return self._masked(fn if fn.batch_shape == z.shape[:-1] else fn.expand(z.shape[:-1]))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        return self.given(value).log_prob(value)

    def _masked(self, fn: Any) -> Any:
        return fn if self.masked is None else fn.mask(self.masked)


def given(site: Mapping[str, Any]) -> Mapping[str, Any]:
    """The site with the law that its distribution is at its value."""
    if isinstance(site["fn"], Unrolled):
        return {**site, "fn": site["fn"].given(site["value"])}
    return site


def _time_last(leaf: Array) -> Array:
    """(T, …, B, D) to (…, T, B, D)."""
    return jnp.moveaxis(leaf, 0, -3)
