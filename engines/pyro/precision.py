"""Matrix products with weights: in bfloat16, and inside a loop over time.

`products_in`: operands in bfloat16 and float32 accumulation, for float32 tensors. On processors with bfloat16 units
oneDNN rounds the operands inside the product; on CUDA the same switch takes TF32. Results and everything around the
products stay float32; float64 is never touched.

`_Gathering`: a weight's gradient is Σ_t δ_tᵀ x_t, which autograd adds up step by step, a pass over the weight each time.
`_linear` and `onto` inside the context let it be one product over all steps, once δ_1 … δ_T are there. What is to be
differentiated twice, also within a step, takes `_twice_differentiable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

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


class _Gathered(torch.autograd.Function):
    """What the products of a weight are added to at every step (T, N, out), whose gradient is δ_1 … δ_T."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, weight: Tensor, inputs: list[Tensor], versions: list[int]) -> Tensor:
        ctx.weight, ctx.inputs, ctx.versions = weight, inputs, versions
        return base.view_as(base)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.inputs
        if not _is_reached(ctx.weight):
            return upstream, None, None, None
        if [x._version for x in inputs] != ctx.versions:
            raise RuntimeError(
                "what a product in a loop over time reads was changed in place before its gradient was formed"
            )
        return upstream, upstream[: len(inputs)].flatten(0, 1).t() @ torch.cat(inputs), None, None


class _Use(NamedTuple):
    """A weight with what its products are added to, in a loop. Both are kept, so that no other tensor has their ids."""

    weight: Tensor
    added: Tensor | None
    transposed: Tensor
    inputs: list[Tensor]
    versions: list[int]
    gathered: Sequence[Tensor]


class _Gathering:
    """Inside, `_linear` and `onto` are called in a loop over this many steps."""

    current: _Gathering | None = None
    most = 32
    """Weights whose gradients are gathered: of those that are made anew at every step, the rest is autograd's."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.uses: dict[tuple[int, int], _Use] = {}
        self.places: dict[int, tuple[Tensor, Tensor, int]] = {}

    def __enter__(self) -> _Gathering:
        self.before, _Gathering.current = _Gathering.current, self
        return self

    def __exit__(self, *error: object) -> None:
        _Gathering.current = self.before

    def parts(self, sequence: Tensor) -> tuple[Tensor, ...]:
        """Each step of (T, …), to which `onto` adds."""
        found = sequence.unbind(0)
        self.places |= {id(part): (part, sequence, time) for time, part in enumerate(found)}
        return found

    def product(self, x: Tensor, weight: Tensor, added: Tensor | None) -> Tensor:
        """a_t + x_t Wᵀ with x (N, in) of the next step; added: a (T, N, out) of all steps, or (out,), or nothing."""
        use = self.uses.get((id(weight), id(added)))
        if use is None or len(use.inputs) == self.steps or use.gathered[0].shape[0] != x.shape[0]:
            base = weight.new_zeros(()) if added is None else added
            lists: tuple[list[Tensor], list[int]] = [], []
            gathered = _Gathered.apply(base.expand(self.steps, x.shape[0], weight.shape[0]), weight, *lists).unbind(0)
            use = self.uses[id(weight), id(added)] = _Use(weight, added, weight.detach().t(), *lists, gathered)
        found = torch.addmm(use.gathered[len(use.inputs)], x, use.transposed)
        use.inputs.append(x.detach())
        use.versions.append(x._version)
        return found

    def sequence(self, part: Tensor, weight: Tensor) -> Tensor | None:
        """What `part` is a step of, where the weight's next product is the one to be added to it."""
        if id(part) not in self.places:
            return None
        _, sequence, time = self.places[id(part)]
        use = self.uses.get((id(weight), id(sequence)))
        return sequence if time == (0 if use is None else len(use.inputs)) else None


def _loop(weight: Tensor) -> _Gathering | None:
    """The loop that gathers this weight's gradient, if one does."""
    loop = _Gathering.current
    if loop is None or len(loop.uses) >= loop.most or _twice():
        return None
    return loop if torch.is_grad_enabled() and weight.requires_grad else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b."""
    loop = _loop(weight)
    if loop is None or x.dim() < 2:
        return torch.nn.functional.linear(x, weight, bias)
    found = loop.product(x.flatten(0, -2) if x.dim() > 2 else x, weight, bias)
    return found.unflatten(0, x.shape[:-1]) if x.dim() > 2 else found


def onto(x: Tensor, base: Tensor, weight: Tensor) -> Tensor:
    """base + x Wᵀ, in one operation where nothing is broadcast."""
    if x.dim() != 2 or base.shape != (*x.shape[:1], *weight.shape[:1]):
        return base + _linear(x, weight)
    loop = _loop(weight)
    sequence = None if loop is None else loop.sequence(base, weight)
    if loop is None or sequence is None:
        return torch.addmm(base, x, weight.t())
    return loop.product(x, weight, sequence)
