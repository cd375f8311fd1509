"""The story's language on Pyro: what `models/ppl.py` asks for, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyro
import pyro.distributions
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ...models.errors import BadInput
from ...models.sequence import Step
from ...models.spec import Network, Spec
from ..windows import Carry
from .unrolled import Path

_TIME = "time step"


class PPL:
    """Pyro behind the Protocol `guidebook.models.PPL`.

    Args:
        modules: network name → realised module.
        register: whether `module` registers parameters in Pyro's store, as stock `pyro.infer.SVI` needs.
        dtype, device: of `zeros`.
    """

    dist = pyro.distributions
    exp = staticmethod(torch.exp)
    log = staticmethod(torch.log)
    tanh = staticmethod(torch.tanh)
    sigmoid = staticmethod(torch.sigmoid)
    softplus = staticmethod(nn.functional.softplus)
    deterministic = staticmethod(pyro.deterministic)
    factor = staticmethod(pyro.factor)

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        register: bool = True,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:
        self.modules = modules
        self.register = register
        self.dtype, self.device = dtype, device
        self.used: set[str] = set()
        self.paths: list[Any] = []
        self.carry: Carry | None = None

    def sample(self, name: str, fn: Any, obs: Tensor | None = None) -> Tensor:
        return pyro.sample(name, fn, obs=obs)

    def plate(self, name: str, size: int, *, subsample: Tensor | None = None, dim: int | None = None) -> Any:
        return pyro.plate(name, size, subsample=subsample, dim=dim)

    def mask(self, mask: Any) -> Any:
        return pyro.poutine.mask(mask=mask)

    def module(self, name: str, network: Network | nn.Module) -> Callable[..., Any]:
        own = self.modules.get(name)
        module: Any = own if isinstance(network, (Network, Spec)) else network
        if module is None or not (self.register or module is own):
            raise _unlisted(name)
        self.used.add(name)
        call = self._registered(name, module)
        others = {other: self._registered(other, self.modules[other]) for other in getattr(module, "reads", ())}
        return partial(call, **others) if others else call

    def _registered(self, name: str, module: Any) -> Any:
        if not self.register:
            return module
        with warnings.catch_warnings():  # weights that are never trained, like p(n), are meant to stay out of the store
            warnings.filterwarnings("ignore", message=".* was not registered in the param store")
            return pyro.module(name, module)

    def scan(self, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
        """A Python loop; the sites of step t are named `site[t]` and put together again on export."""
        outputs = []
        for time, x in enumerate(_unbind(xs)):
            with _Step(time):
                carry, y = step(carry, x)
            outputs.append(y)
        return carry, _stack(outputs)

    def unroll(self, step: Step, x: Tensor) -> Path:
        return Path(step, x, self.paths, self.carry)

    def concatenate(self, xs: Any, axis: int = -1) -> Tensor:
        xs = tuple(xs)
        shape = list(torch.broadcast_shapes(*(x.narrow(axis, 0, 1).shape for x in xs)))
        return torch.cat([x.expand(*shape[:axis], x.shape[axis], *shape[axis:][1:]) for x in xs], dim=axis)

    def flip(self, x: Tensor) -> Tensor:
        return x.flip(0)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class _Step(Messenger):
    """Suffixes the sites of one step of a scan, and says so in their `infer` field."""

    def __init__(self, time: int) -> None:
        super().__init__()
        self.time = time

    def _pyro_sample(self, msg: Any) -> None:
        msg["infer"] = {**(msg["infer"] or {}), _TIME: (msg["name"], self.time)}
        msg["name"] = f"{msg['name']}[{self.time}]"


def _base_name(name: str, site: Mapping[str, Any]) -> str:
    """The name of a site in the story: `z` for `z[3]` inside a scan."""
    return (site["infer"] or {}).get(_TIME, (name, None))[0]


def _unlisted(name: str) -> BadInput:
    return BadInput(
        f"the program uses a network {name!r} that is not the pair's own and would never be fitted: "
        f"list it in Pair.networks and write ppl.module({name!r}, nets[{name!r}])"
    )


def _unbind(xs: Any) -> Iterator[Any]:
    """Steps along the leading axis. `unbind`: the backward of `x[t]` would fill a tensor of zeros at every step."""
    if isinstance(xs, Mapping):
        columns = {key: value.unbind(0) for key, value in xs.items()}
        return ({key: column[t] for key, column in columns.items()} for t in range(len(next(iter(columns.values())))))
    if isinstance(xs, (tuple, list)):
        return zip(*(x.unbind(0) for x in xs), strict=True)
    return iter(xs.unbind(0))


def _stack(outputs: list[Any]) -> Any:
    first = outputs[0] if outputs else None
    if first is None:
        return None
    if isinstance(first, Mapping):
        return {key: torch.stack([output[key] for output in outputs]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(torch.stack(column) for column in zip(*outputs, strict=True))
    return torch.stack(outputs)


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Runs with a seed of its own and gives the user's generator back as it was."""
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
