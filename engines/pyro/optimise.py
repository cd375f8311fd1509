"""Optimisers of one side on PyTorch, and clipping over both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..protocol import OptimiserSpec


def realise(spec: OptimiserSpec, parameters: list[Tensor]) -> Optimizer:
    """The optimiser `spec` over `parameters`, fused into one pass."""
    if spec.kind == "sgd":
        return SGD(parameters, lr=1.0, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True)
    kind = {"adam": Adam, "adamw": AdamW}[spec.kind]
    return kind(parameters, lr=1.0, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay, fused=True)


def clip(gradients: Mapping[str, Tensor], bound: float | None) -> tuple[Tensor, dict[str, Tensor]]:
    """Scales `gradients` in place to a global norm of at most `bound`; returns the norm before, and each one's own."""
    tensors = list(gradients.values())
    norms = list(torch._foreach_norm(tensors)) if tensors else []
    norm = torch.nn.utils.get_total_norm(norms)
    if bound is not None and norm > bound:
        torch._foreach_mul_(tensors, bound / norm)
    return norm, dict(zip(gradients, norms, strict=True))


def slots(optimiser: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """The optimiser's arrays, named `slot/parameter`."""
    return {
        f"{slot}/{names[parameter]}": value
        for parameter, table in optimiser.state.items()
        for slot, value in table.items()
        if isinstance(value, Tensor)
    }


def load_slots(optimiser: Optimizer, parameters: Mapping[str, Tensor], arrays: Mapping[str, Tensor]) -> None:
    """Puts back what `slots` gave."""
    for key, value in arrays.items():
        slot, _, name = key.partition("/")
        if name in parameters:
            parameter = parameters[name]
            optimiser.state[parameter][slot] = value.to(parameter.device) if value.dim() else value
