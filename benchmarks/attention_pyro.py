"""Steps of denoising attention and of what it is measured against, on PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import Step
from guidebook.engines.pyro.denoising import Atoms, Components, Projections, attend, mean_measure, sampled

Arrays = Mapping[str, np.ndarray]


def training(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, and back from a given gradient of the output to queries, vectors, weights and projections."""
    x = {name: torch.from_numpy(array) for name, array in arrays.items()}
    inputs = [x[name].requires_grad_() for name in ("y", "z", "log_weight", "query", "key", "value")]

    def step(forward: Callable[..., Tensor]) -> Step:
        def run() -> None:
            for each in inputs:
                each.grad = None
            forward(*inputs).backward(x["upstream"])

        return run

    def ours(y: Tensor, z: Tensor, log_weight: Tensor, *weights: Tensor) -> Tensor:
        projections = Projections(*weights)
        return attend(y, sampled(Atoms(z, log_weight), projections, heads), projections)

    return {"ours": step(ours), "plain": step(lambda y, z, _, *weights: plain(y, z, heads, *weights))}


def scalar(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, with one variance for each component."""
    x, projections = _evaluated(arrays)

    def ours() -> Tensor:
        components = Components(x["log_weight"], x["z"], x["variance"][..., :1])
        return attend(x["y"], mean_measure(components, projections, heads), projections)

    return {
        "ours": torch.no_grad()(ours),
        "plain": torch.no_grad()(lambda: plain(x["y"], x["z"], heads, x["query"], x["key"], x["value"])),
    }


def general(arrays: Arrays, heads: int) -> dict[str, Step]:
    """Forward, with a variance for each coordinate; once it gives what the usual design gives by the same rule."""
    x, projections = _evaluated(arrays)
    components = Components(x["log_weight"], x["z"], x["variance"])

    def ours(rule: Any = "exact", precision: str = "float32") -> Tensor:
        keys = mean_measure(components, projections, heads, rule)
        return attend(x["y"], keys, projections, precision=precision)

    def stock() -> Tensor:
        return usual(x, heads)

    with torch.no_grad():
        torch.testing.assert_close(ours("reference"), stock(), rtol=1e-3, atol=1e-4)
    steps = {"ours": ours, "stock": stock, "bfloat16": lambda: ours(precision="bfloat16")}
    return {name: torch.no_grad()(step) for name, step in steps.items()}


def plain(y: Tensor, z: Tensor, heads: int, *weights: Tensor) -> Tensor:
    """Multi-head attention over the vectors themselves."""
    query, key, value = (_split(F.linear(x, w), heads) for x, w in zip((y, z, z), weights, strict=True))
    return F.scaled_dot_product_attention(query, key, value).transpose(-3, -2).flatten(-2)


def usual(x: Mapping[str, Tensor], heads: int) -> Tensor:
    """The published design: queries, logits, means and gates at width p in every head, without the term in u²."""
    lift, value = (x[name].unflatten(0, (heads, -1)) for name in ("key", "value"))
    root = lift.shape[-2] ** 0.5
    u = _split(F.linear(x["y"], x["query"]), heads) @ lift
    s = root + x["variance"]
    bias = x["log_weight"] - 0.5 * (x["z"].square() / s).sum(-1) - 0.5 * s.log().sum(-1)
    logits = u @ (x["z"] / s).unsqueeze(-3).mT + bias[:, None, None]
    weights = logits.softmax(-1)
    mean = weights @ (x["z"] * root / s).unsqueeze(-3)
    gate = weights @ (x["variance"] / s).unsqueeze(-3)
    return ((mean + gate * u) @ value.mT).transpose(-3, -2).flatten(-2)


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _evaluated(arrays: Arrays) -> tuple[dict[str, Tensor], Projections]:
    x = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return x, Projections(x["query"], x["key"], x["value"])
