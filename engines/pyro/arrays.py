"""The array functions of `engines/arrays.py` on PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

abs = torch.abs
exp = torch.exp
log = torch.log
sqrt = torch.sqrt
where = torch.where


def concatenate(arrays: Sequence[Tensor], axis: int = 0) -> Tensor:
    return torch.cat(tuple(arrays), dim=axis)


def sort(x: Tensor, axis: int = -1) -> Tensor:
    return torch.sort(x, dim=axis).values


def logsumexp(x: Tensor, axis: int) -> Tensor:
    return torch.logsumexp(x, dim=axis)


def softmax(x: Tensor, axis: int) -> Tensor:
    return torch.softmax(x, dim=axis)


def stop_gradient(x: Any) -> Any:
    """A tensor without its history; a distribution (or list) whose tensors are all so, with the same values."""
    if isinstance(x, Tensor):
        return x.detach()
    if isinstance(x, (list, tuple)):
        stopped = map(stop_gradient, x)
        return type(x)(*stopped) if hasattr(x, "_fields") else type(x)(stopped)
    if isinstance(x, (torch.distributions.Distribution, torch.distributions.Transform)):
        stopped = copy.copy(x)
        vars(stopped).update({name: stop_gradient(value) for name, value in vars(x).items()})
        return stopped
    return x


def like(values: np.ndarray, x: Tensor) -> Tensor:
    """`values` as an array of the kind, type and place of `x`."""
    return torch.as_tensor(values).to(x)
