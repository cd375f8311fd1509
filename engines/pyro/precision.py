"""Matrix products with bfloat16 operands and float32 accumulation, for float32 tensors.

On processors with bfloat16 units oneDNN rounds the operands inside the product; on CUDA the same switch takes
TF32. Results and everything around the products stay float32; float64 is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...models.errors import BadInput

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """`precision`, if there is such a one."""
    if precision not in PRECISIONS:
        raise BadInput(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """float32 products inside take operands of `precision`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "bfloat16" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


_orders = {"twice": False}


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """What is computed inside, in float32 or float64, has second derivatives, at the price of memory and time."""
    before, _orders["twice"] = _orders["twice"], True
    try:
        yield
    finally:
        _orders["twice"] = before


def _twice() -> bool:
    return _orders["twice"]


_reached: dict[str, set[int] | None] = {"weights": None}


@contextmanager
def _reaching(parameters: Sequence[Tensor]) -> Iterator[None]:
    """A backward pass inside is for these parameters alone: autograd does not tell a Function of `backward(inputs=)`."""
    before, _reached["weights"] = _reached["weights"], {parameter.data_ptr() for parameter in parameters}
    try:
        yield
    finally:
        _reached["weights"] = before


def _is_reached(weight: Tensor) -> bool:
    wanted = _reached["weights"]
    return wanted is None or not weight.is_leaf or weight.data_ptr() in wanted


class _Product(torch.autograd.Function):
    """x Wᵀ with every product, forward and backward, in the given precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, precision: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.precision = precision
        with products_in(precision):
            return x @ weight.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        with products_in(ctx.precision):
            return upstream @ weight, upstream.flatten(0, -2).t() @ x.flatten(0, -2), None


def product(x: Tensor, weight: Tensor, precision: str = "float32") -> Tensor:
    """x Wᵀ: (…, in), (out, in) to (…, out)."""
    plain = precision == "float32" or _twice()
    return torch.nn.functional.linear(x, weight) if plain else _Product.apply(x, weight, precision)


def onto(x: Tensor, base: Tensor, weight: Tensor) -> Tensor:
    """base + x Wᵀ, in one operation where nothing is broadcast."""
    if x.dim() == 2 and base.shape == (len(x), len(weight)):
        return torch.addmm(base, x, weight.t())
    return base + torch.nn.functional.linear(x, weight)
