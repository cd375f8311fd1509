"""The story's language on NumPyro: what `models/ppl.py` asks for, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions
from jax import Array
from numpyro.contrib.control_flow import scan

from ...models.errors import BadInput
from ...models.sequence import Step
from ...models.spec import Network, Spec
from ..windows import Carry
from .unrolled import Path


class PPL:
    """NumPyro behind the Protocol `guidebook.models.PPL`.

    Args:
        modules: network name → realised module.
        register: whether `module` registers parameters with `numpyro.param`, as stock `numpyro.infer.SVI` needs.
        training: whether networks get a key for dropout.
        dtype: of `zeros`.
    """

    dist = numpyro.distributions
    exp = staticmethod(jnp.exp)
    log = staticmethod(jnp.log)
    tanh = staticmethod(jnp.tanh)
    sigmoid = staticmethod(jax.nn.sigmoid)
    softplus = staticmethod(jax.nn.softplus)
    deterministic = staticmethod(numpyro.deterministic)
    factor = staticmethod(numpyro.factor)

    def __init__(
        self, modules: Mapping[str, Any], *, register: bool = True, training: bool = True, dtype: Any = jnp.float32
    ) -> None:
        self.modules = modules
        self.register, self.training = register, training
        self.dtype = dtype
        self.used: set[str] = set()
        self.scans = False
        self.paths: list[Any] = []
        self.carry: Carry | None = None

    def sample(self, name: str, fn: Any, obs: Array | None = None) -> Array:
        return numpyro.sample(name, fn, obs=obs)  # pyright: ignore[reportReturnType]

    @contextmanager
    def plate(self, name: str, size: int, *, subsample: Array | None = None, dim: int | None = None) -> Iterator[Any]:
        """A plate of the rows at hand, scaled by size / rows: NumPyro's own would draw indices of its own."""
        rows = size if subsample is None else subsample.shape[0]
        with numpyro.handlers.scale(scale=size / rows), numpyro.plate(name, rows, dim=dim) as index:
            yield index if subsample is None else subsample

    def mask(self, mask: Array) -> Any:
        return numpyro.handlers.mask(mask=mask)

    def module(self, name: str, network: Network | Any) -> Callable[..., Any]:
        own = self.modules.get(name)
        module: Any = own if isinstance(network, (Network, Spec)) else network
        if module is None or not (self.register or module is own):
            raise _unlisted(name)
        self.used.add(name)
        module = self._registered(name, module)
        others = {other: self._registered(other, self.modules[other]) for other in getattr(module, "reads", ())}
        if not (self.training and _takes_key(module)):
            return partial(module, **others) if others else module
        if not getattr(module, "running", False):
            return lambda *args: module(*args, **others, key=numpyro.prng_key())
        if self.register:
            raise BadInput(
                f"the network {name!r} keeps running moments, which stock numpyro.infer.SVI would not: "
                "fit the pair with guidebook.inference.fit"
            )
        reporting = numpyro.handlers.scope(module, prefix=name, divider=".")
        return lambda *args: reporting(*args, **others, key=numpyro.prng_key())

    def _registered(self, name: str, module: Any) -> Any:
        if not self.register:
            return module
        arrays, rest = eqx.partition(module, eqx.is_inexact_array)
        return eqx.combine(numpyro.param(f"{name}$params", lambda _: arrays), rest)

    def scan(self, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
        """`numpyro.contrib.control_flow.scan`: every site inside comes out as one, time before its other axes."""
        self.scans = True
        return scan(step, carry, xs)

    def unroll(self, step: Step, x: Array) -> Path:
        return Path(step, x, self.paths, self.carry)

    def concatenate(self, xs: Any, axis: int = -1) -> Array:
        xs = tuple(xs)
        shape = list(jnp.broadcast_shapes(*(jnp.take(x, jnp.array([0]), axis).shape for x in xs)))
        each = [jnp.broadcast_to(x, (*shape[:axis], x.shape[axis], *shape[axis:][1:])) for x in xs]
        return jnp.concatenate(each, axis=axis)

    def flip(self, x: Array) -> Array:
        return jnp.flip(x, 0)

    def zeros(self, shape: tuple[int, ...]) -> Array:
        return jnp.zeros(shape, self.dtype)


def _unlisted(name: str) -> BadInput:
    return BadInput(
        f"the program uses a network {name!r} that is not the pair's own and would never be fitted: "
        f"list it in Pair.networks and write ppl.module({name!r}, nets[{name!r}])"
    )


def seeded(seed: int) -> Array:
    """The key of a derived seed (`engines.seeds.derive`)."""
    return jax.random.wrap_key_data(jnp.array([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32), impl="threefry2x32")


def _takes_key(module: Any) -> bool:
    return "key" in inspect.signature(module.__call__).parameters
