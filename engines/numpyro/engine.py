"""A pair realised on NumPyro: `init` and `step` of the one loop, and its weights as NumPy (`engines/protocol.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...guides.pair import Pair
from ...models.spec import Network
from .. import protocol
from ..protocol import Batch, Control, Info, OptimiserSpec, Settings, noise_of
from ..seeds import derive
from ..terms import Sides
from ..weights import check
from ..windows import Carry, windows
from . import optimise
from .arrays import stop_gradient
from .losses import Losses
from .ppl import seeded
from .programs import Parameters


class State(NamedTuple):
    """Parameters by engine-neutral name, and the optimisers' states by side. Consumed by the step that takes it."""

    parameters: Parameters
    optimisers: dict[str, Any]


def _on_its_device(program: type) -> type:
    """Every method of the Protocol runs on the program's device: else JAX takes a GPU wherever it finds one."""

    def placed(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def run(self: Any, *args: Any, **kwargs: Any) -> Any:
            with jax.default_device(self.device):
                return method(self, *args, **kwargs)

        return run

    for name, declared in vars(protocol.Program).items():
        if callable(declared) and not name.startswith("_"):
            setattr(program, name, placed(getattr(program, name)))
    return program


@_on_its_device
class Program(Losses):
    """`engines.protocol.Program` on NumPyro: pure functions of the parameters, compiled once a shape."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        super().__init__(pair, nets, settings)
        self.compilations = 0
        self.rules: dict[str, Any] = {}
        self._fused = jax.jit(self._traced_step, static_argnums=(6,), donate_argnums=(0,))
        self._gradient = jax.jit(self._traced_gradient, static_argnums=(5,))
        self._update = jax.jit(self._apply, static_argnums=(3,), donate_argnums=(0,))

    def init(self, batch: Batch) -> State:
        parameters = self.first_run(batch)
        self.refuse_settings(parameters, batch)
        specs = self.settings.optimisers or {}
        self.rules = {
            side: optimise.realise(specs.get(side, OptimiserSpec()))
            for side in sorted({self.side[name] for name in parameters if name not in self.untrained})
        }
        return State(
            parameters, {side: rule.init(self._trained(side, parameters)) for side, rule in self.rules.items()}
        )

    def step(self, state: State, batches: Sequence[Batch], control: Control) -> tuple[State, Info]:
        rates = {side: np.float32(control.learning_rate[side]) for side in self.rules}
        weight, step = jax.tree.map(np.float32, control.weight), np.uint32(control.step)
        arrays, sides = [self.arrays(batch) for batch in batches], control.sides
        if len(arrays) == 1:
            return self._fused(state, arrays[0], step, np.uint32(0), weight, rates, sides)
        found = (
            self._gradient(state.parameters, one, step, np.uint32(n), weight, sides) for n, one in enumerate(arrays)
        )
        gradients, info = reduce(lambda one, other: jax.tree.map(jnp.add, one, other), found)
        gradients = jax.tree.map(lambda gradient: gradient / len(batches), gradients)
        state, norms = self._update(state, gradients, rates, sides)
        return state, info | norms

    def _traced_step(
        self, state: State, arrays: Any, step: Any, place: Any, weight: Any, rates: Any, sides: tuple[str, ...]
    ) -> tuple[State, Any]:
        gradients, info = self._traced_gradient(state.parameters, arrays, step, place, weight, sides)
        state, norms = self._apply(state, gradients, rates, sides)
        return state, info | norms

    def _traced_gradient(
        self, parameters: Parameters, arrays: Any, step: Any, place: Any, weight: Any, sides: tuple[str, ...]
    ) -> tuple[Parameters, Info]:
        """Runs when JAX compiles, hence once a shape and choice of sides: that is what `compilations` counts."""
        self.compilations += 1
        noise = seeded(derive(self.settings.seed, noise_of(sides)))
        draw = jax.random.fold_in(jax.random.fold_in(noise, step), place)
        moving = {name: value for name, value in parameters.items() if self.side[name] in sides}

        differ = False

        def losses(moving: Parameters) -> tuple[tuple[Array, Array], tuple[dict[str, Array], dict[str, Array]]]:
            nonlocal differ
            self.moments = {}
            terms, found = self.loss_of(parameters | moving, arrays, draw, weight)
            every = found if isinstance(found, Sides) else Sides(found, found, found)
            differ = every.model is not every.guide
            model, guide = ((side * terms.weight).sum() / terms.weight.size for side in (every.model, every.guide))
            return (model, guide), (terms.sums(every.value * terms.weight), self.moments)

        if self.settings.truncate is None:
            (model, _), tangents, (info, moments) = jax.linearize(losses, moving, has_aux=True)

            def gradient(side: int) -> Parameters:
                """A backward pass of what this side's loss is made of: both share the one forward pass."""
                return jax.linear_transpose(lambda moved: tangents(moved)[side], moving)(jnp.ones_like(model))[0]

            found = gradient(0)
            if differ:
                by_guide = gradient(1)
                found |= {name: by_guide[name] for name in found if self.side[name] == "guide"}
        else:
            found, (info, moments) = self._through_windows(parameters, moving, arrays, draw, weight)
        return found | {name: parameters[name] - moment for name, moment in moments.items()}, info

    def _through_windows(
        self, parameters: Parameters, moving: Parameters, arrays: Any, key: Array, weight: Any
    ) -> tuple[Parameters, tuple[dict[str, Array], dict[str, Array]]]:
        """The gradient and the sums over all windows; those of the same length are one compiled loop."""
        first, *others = windows(arrays, self.settings.truncate)

        def gradient(part: Any, start: Any, number: Any) -> tuple[Parameters, tuple[dict[str, Array], Any]]:
            def loss(moving: Parameters) -> tuple[Array, tuple[dict[str, Array], Any]]:
                self.carry = Carry(start)
                terms, found = self.loss_of(parameters | moving, part, jax.random.fold_in(key, number), weight)
                found = found * terms.weight
                sums = terms.sums(found)
                if start is not None:  # rows that are counted
                    sums["rows"] = jnp.zeros_like(sums["rows"])
                return found.sum() / terms.weight.size, (sums, self.carry.last)

            return jax.grad(loss, has_aux=True)(moving)

        def add(one: Any, other: Any) -> Any:
            return jax.tree.map(jnp.add, one, other)

        found, (info, last) = gradient(first, None, 0)
        whole = [part for part in others if part["x"].shape == first["x"].shape]
        if whole:
            size = first["x"].shape[1]

            def body(carry: Any, number: Any) -> tuple[Any, None]:
                found, info, last = carry
                part = {
                    name: jax.lax.dynamic_slice_in_dim(arrays[name], number * size, size, 1) for name in ("x", "mask")
                }
                more, (sums, last) = gradient(arrays | part, stop_gradient(last), number)
                return (add(found, more), add(info, sums), last), None

            (found, info, last), _ = jax.lax.scan(body, (found, info, last), jnp.arange(1, len(whole) + 1))
        for part in others[len(whole) :]:
            more, (sums, last) = gradient(part, stop_gradient(last), len(others))
            found, info = add(found, more), add(info, sums)
        self.carry = None
        return found, (info, {})

    def _apply(self, state: State, gradients: Parameters, rates: Any, sides: tuple[str, ...]) -> tuple[State, Info]:
        trained = {name: gradient for name, gradient in gradients.items() if name not in self.untrained}
        trained, norm, norms = optimise.clip(trained, self.settings.clip)

        def updated() -> State:
            parameters, optimisers = dict(state.parameters), dict(state.optimisers)
            for side, rule in self.rules.items():
                if side not in sides:
                    continue
                chosen = self._trained(side, state.parameters)
                updates, optimisers[side] = rule.update(self._of(side, trained), state.optimisers[side], chosen)
                parameters |= {
                    name: value - rates[side].astype(value.dtype) * updates[name] for name, value in chosen.items()
                }
            parameters |= {
                name: parameters[name] - momentum * gradients[name]
                for name, momentum in self.momentum.items()
                if self.side[name] in sides
            }
            return State(parameters, optimisers)

        info = {"gradient_norm": norm} | {f"gradient_norm/{name}": own for name, own in norms.items()}
        return jax.lax.cond(jnp.isfinite(norm), updated, lambda: state), info

    def weights(self, state: State) -> dict[str, np.ndarray]:
        return {name: np.array(value) for name, value in state.parameters.items()}

    def load_weights(self, state: State, weights: Mapping[str, np.ndarray]) -> State:
        check(weights, {name: value.shape for name, value in state.parameters.items()})
        return state._replace(
            parameters={name: jnp.array(weights[name], value.dtype) for name, value in state.parameters.items()}
        )

    def slots(self, state: State) -> dict[str, np.ndarray]:
        return optimise.slots(state.optimisers)

    def load_slots(self, state: State, slots: Mapping[str, np.ndarray]) -> State:
        check(slots, {name: slot.shape for name, slot in self.slots(state).items()}, "optimiser's slots")
        return state._replace(optimisers=optimise.load_slots(state.optimisers, slots))

    def sides(self, state: State) -> dict[str, str]:
        return dict(self.side)

    def _trained(self, side: str, parameters: Parameters) -> Parameters:
        return {name: value for name, value in self._of(side, parameters).items() if name not in self.untrained}

    def _of(self, side: str, parameters: Parameters) -> Parameters:
        return {name: value for name, value in parameters.items() if self.side[name] == side}
