"""A pair realised on Pyro: `init` and `step` of the one loop, and its weights as NumPy (`engines/protocol.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..protocol import SIDES, Batch, Control, Info, OptimiserSpec, noise_of
from ..seeds import derive
from ..terms import Sides, Terms
from ..weights import check
from . import objective, optimise
from .losses import Losses
from .module import _still


@dataclass
class State:
    """Parameters by engine-neutral name, updated in place, and their optimisers by side."""

    parameters: dict[str, Tensor]
    optimisers: dict[str, Optimizer]


class Program(Losses):
    """`engines.protocol.Program` on Pyro."""

    compilations = 0

    def init(self, batch: Batch) -> State:
        parameters = self.first_run(batch)
        self.refuse_settings(batch)
        specs = self.settings.optimisers or {}
        optimisers = {
            side: optimise.realise(specs.get(side, OptimiserSpec()), self._trained(side, parameters))
            for side in sorted({self.side[name] for name in parameters if name not in self.untrained})
        }
        return State(parameters, optimisers)

    def step(self, state: State, batches: Sequence[Batch], control: Control) -> tuple[State, Info]:
        self._training(True)
        for parameter in state.parameters.values():
            parameter.grad = None
        info: dict[str, Tensor] = {}
        noise = derive(self.settings.seed, noise_of(control.sides), control.step)
        others = (value for name, value in state.parameters.items() if self.side[name] not in control.sides)
        with _still(others), self.running(noise):
            self._reported()
            for batch in batches:
                for number, (terms, found) in enumerate(self.losses_of(self.arrays(batch), control.weight)):
                    for name, moment in self._reported().items() if number == 0 else ():
                        weight = state.parameters[name]
                        weight.grad = weight - moment if weight.grad is None else weight.grad + weight - moment
                    loss = self._backward(state, terms, found, len(batches))
                    with torch.no_grad():
                        for key, value in terms.sums(loss).items():
                            if number == 0 or key != "rows":  # those of a later window are counted
                                info[key] = info[key] + value if key in info else value
        info |= self._update(state, control, len(batches))
        return state, dict(zip(info, torch.stack([value.double() for value in info.values()]).tolist(), strict=True))

    def _backward(self, state: State, terms: Terms, found: Tensor | Sides, batches: int) -> Tensor:
        """Adds each side's gradient; what is reported of the loss, (B,) with fillers 0."""
        if isinstance(found, Sides):
            parts = [part * terms.weight for part in found]
            theirs = {own: theirs for theirs, own in self.lent}
            own = ([theirs.get(one, one) for one in self._trained(side, state.parameters)] for side in SIDES)
            objective._backward(Sides(*(part.sum() / (len(part) * batches) for part in parts)), *own)
            return parts[0]
        loss = found * terms.weight
        (loss.sum() / (len(loss) * batches)).backward()
        return loss

    def _update(self, state: State, control: Control, batches: int) -> dict[str, Tensor]:
        moving = {name: value for name, value in state.parameters.items() if self.side[name] in control.sides}
        found = {name: value.grad for name, value in moving.items() if name not in self.untrained}
        gradients = {name: gradient for name, gradient in found.items() if gradient is not None}
        norm, norms = optimise.clip(gradients, self.settings.clip)
        if torch.isfinite(norm):
            for side, optimiser in state.optimisers.items():
                if side in control.sides:
                    optimiser.param_groups[0]["lr"] = control.learning_rate[side]
                    optimiser.step()
            for name in self.momentum.keys() & moving.keys():
                moment = moving[name]
                moment.data -= self.momentum[name] / batches * moment.grad  # pyright: ignore[reportOperatorIssue]
        return {"gradient_norm": norm} | {f"gradient_norm/{name}": own for name, own in norms.items()}

    def weights(self, state: State) -> dict[str, np.ndarray]:
        return {name: parameter.detach().cpu().numpy().copy() for name, parameter in state.parameters.items()}

    def load_weights(self, state: State, weights: Mapping[str, np.ndarray]) -> State:
        check(weights, {name: tuple(parameter.shape) for name, parameter in state.parameters.items()})
        with torch.no_grad():
            for name, parameter in state.parameters.items():
                parameter.copy_(torch.as_tensor(np.array(weights[name])))
        return state

    def slots(self, state: State) -> dict[str, np.ndarray]:
        names = {parameter: name for name, parameter in state.parameters.items()}
        found = [optimise.slots(optimiser, names) for optimiser in state.optimisers.values()]
        return {key: value.cpu().numpy().copy() for table in found for key, value in table.items()}

    def load_slots(self, state: State, slots: Mapping[str, np.ndarray]) -> State:
        slots = {key: array.reshape(()) if key.startswith("step/") else array for key, array in slots.items()}
        check(slots, self._slot_shapes(state, slots), "optimiser's slots")
        arrays = {key: torch.as_tensor(np.array(value)) for key, value in slots.items()}
        for side, optimiser in state.optimisers.items():
            optimise.load_slots(optimiser, self._of(side, state.parameters), arrays)
        return state

    def _slot_shapes(self, state: State, names: Iterable[str]) -> dict[str, tuple[int, ...]]:
        """Slots come with the first step: a side has all of its kinds, for all parameters it has stepped."""
        found: dict[str, tuple[int, ...]] = {}
        pairs = [key.partition("/")[::2] for key in names]
        for side in state.optimisers:
            own = self._of(side, state.parameters)
            kinds = {kind for kind, name in pairs if name in own}
            stepped = {name for _, name in pairs if name in own}
            found |= {
                f"{kind}/{name}": () if kind == "step" else tuple(own[name].shape) for kind in kinds for name in stepped
            }
        return found

    def sides(self, state: State) -> dict[str, str]:
        return dict(self.side)

    def _trained(self, side: str, parameters: Mapping[str, Tensor]) -> list[Tensor]:
        return [value for name, value in self._of(side, parameters).items() if name not in self.untrained]

    def _of(self, side: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in parameters.items() if self.side[name] == side}
