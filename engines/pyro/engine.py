"""A pair realised on Pyro: `init` and `step` of the one loop, and its weights as NumPy (`engines/protocol.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from ..protocol import Batch, Control, Info, OptimiserSpec
from ..seeds import derive
from ..terms import Sides, Terms
from ..weights import check
from . import objective, optimise
from .judging import Judging


@dataclass
class State:
    """Parameters by engine-neutral name, updated in place, and their optimisers by side."""

    parameters: dict[str, Tensor]
    optimisers: dict[str, Optimizer]


class Program(Judging):
    """`engines.protocol.Program` on Pyro."""

    compilations = 0

    def init(self, batch: Batch) -> State:
        parameters = self.first_run(batch)
        specs = self.settings.optimisers or {}
        optimisers = {
            side: optimise.realise(specs.get(side, OptimiserSpec()), list(self._of(side, parameters).values()))
            for side in sorted(set(self.side.values()))
        }
        return State(parameters, optimisers)

    def step(self, state: State, batches: Sequence[Batch], control: Control) -> tuple[State, Info]:
        self._training(True)
        for parameter in state.parameters.values():
            parameter.grad = None
        info: dict[str, Tensor] = {}
        with self.running(derive(self.settings.seed, "step", control.step)):
            for batch in batches:
                terms = self.terms_of(self.arrays(batch), self.settings.objective.particles)
                loss = self._backward(state, terms, control.weight, len(batches))
                with torch.no_grad():
                    for key, value in terms.sums(loss).items():
                        info[key] = info[key] + value if key in info else value
        info |= self._update(state, control)
        return state, dict(zip(info, torch.stack([value.double() for value in info.values()]).tolist(), strict=True))

    def _backward(self, state: State, terms: Terms, weight: float | Mapping[str, float], batches: int) -> Tensor:
        """Adds each side's gradient; what is reported of the loss, (B,) with fillers 0."""
        found = self.settings.objective.function(terms, weight)
        if isinstance(found, Sides):
            parts = [part * terms.weight for part in found]
            own = (list(self._of(side, state.parameters).values()) for side in ("model", "guide"))
            objective._backward(Sides(*(part.sum() / (len(part) * batches) for part in parts)), *own)
            return parts[0]
        loss = found * terms.weight
        (loss.sum() / (len(loss) * batches)).backward()
        return loss

    def _update(self, state: State, control: Control) -> dict[str, Tensor]:
        found = {name: parameter.grad for name, parameter in state.parameters.items()}
        gradients = {name: gradient for name, gradient in found.items() if gradient is not None}
        norm, norms = optimise.clip(gradients, self.settings.clip)
        if torch.isfinite(norm):
            for side, optimiser in state.optimisers.items():
                optimiser.param_groups[0]["lr"] = control.learning_rate[side]
                optimiser.step()
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

    def _of(self, side: str, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in parameters.items() if self.side[name] == side}
