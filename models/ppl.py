"""The language a story is written in: what Pyro and NumPyro agree on, and nothing else.

Replace `ppl` by `pyro` in a story and it is a Pyro program. Both engines implement this Protocol
(`engines/pyro/ppl.py`, `engines/numpyro/ppl.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

Array = Any


class PPL(Protocol):
    """The primitives of a story."""

    @property
    def dist(self) -> Any:
        """The engine's distributions: `pyro.distributions` or `numpyro.distributions`."""
        ...

    def sample(self, name: str, fn: Any, obs: Array | None = None) -> Array:
        """Draws the site `name` from `fn`, or scores `obs` under it."""
        ...

    def plate(
        self, name: str, size: int, *, subsample: Array | None = None, dim: int | None = None
    ) -> AbstractContextManager[Any]:
        """Independent rows. With `subsample` (B,) the log-probabilities inside are scaled by size / B."""
        ...

    def mask(self, mask: Array) -> AbstractContextManager[Any]:
        """Sites inside count only where `mask` (B,) is true."""
        ...

    def deterministic(self, name: str, value: Array) -> Array:
        """Records a value that is a function of others."""
        ...

    def factor(self, name: str, log_factor: Array) -> None:
        """Adds `log_factor` to the log joint."""
        ...

    def module(self, name: str, network: Any) -> Callable[..., Any]:
        """The network called `name`, its parameters registered under that name."""
        ...

    def scan(self, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
        """Runs `carry, y = step(carry, x)` over the leading axis of `xs`; returns the last carry and the stacked ys.

        A plate belongs inside `step`; parameters are registered outside it.
        """
        ...

    def unroll(self, step: Any, x: Array) -> Any:
        """The path of a `models.sequence.Step` along the data x (T, B, D): its `latents(law)` are a distribution, and
        its `along(z)` the states along a draw and what the step reads of it.

        The states of a path that the guide drew are not computed again in the model.
        """
        ...

    def exp(self, x: Array) -> Array: ...

    def log(self, x: Array) -> Array: ...

    def tanh(self, x: Array) -> Array: ...

    def sigmoid(self, x: Array) -> Array: ...

    def softplus(self, x: Array) -> Array: ...

    def concatenate(self, xs: Any, axis: int = -1) -> Array:
        """Joined along `axis`, the other dimensions broadcast: a latent may have particles where the data have none."""
        ...

    def flip(self, x: Array) -> Array:
        """x with its first axis in reverse."""
        ...

    def zeros(self, shape: tuple[int, ...]) -> Array:
        """Zeros of the run's floating type, on its device."""
        ...
