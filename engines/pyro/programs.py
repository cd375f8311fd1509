"""A pair's two programs, and its parameters under engine-neutral names."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from ...guides.pair import Pair
from ...models.batch import Batch as StoryBatch
from ...models.errors import BadInput
from ...models.spec import Network
from ..protocol import Batch, Settings
from ..seeds import derive
from ..sites import is_shared
from ..suited import refuse_unsuited
from . import networks, objective
from .enumeration import support
from .ppl import PPL, seeded

Parameters = dict[str, Tensor]
Function = Callable[[Any], None]
Exchange = Callable[[Tensor], Tensor]


class Realised:
    """The networks and programs of a pair on Pyro. A native pair's parameters live in a store of their own."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        _refuse_settings(settings)
        self.pair, self.settings = pair, settings
        self.dtype = getattr(torch, settings.dtype)
        self.networks = {name: self._realise(name, net) for name, net in nets.items()}
        self.momentum = {
            f"{name}.{weight}": share for name, net in nets.items() for weight, share in net.running().items()
        }
        self.untrained = {f"{name}.{weight}" for name, net in nets.items() for weight in net.untrained()}
        self.ppl = PPL(self.networks, register=False, dtype=self.dtype, device=settings.device)
        self.store: dict[str, Any] = {"params": {}, "constraints": {}}
        self.lent: list[tuple[Tensor, Tensor]] = []
        self.called: set[nn.Module] = set()
        self.training = True
        self.side: dict[str, str] = {}
        self.broadcasts = pair.engine is None
        self.shared: tuple[str, ...] = ()
        self.outermost = -2
        self.values: Tensor | None = None

    def programs(self) -> tuple[Function, Function]:
        """Model and guide as functions of one batch of arrays."""
        pair, size = self.pair, self.settings.data_size
        model, guide = pair.model, pair.guide or _nothing
        if pair.engine is None:
            return (
                lambda arrays: model(self.ppl, StoryBatch(arrays, size), self.networks),
                lambda arrays: guide(self.ppl, StoryBatch(arrays, size), self.networks),
            )
        return lambda arrays: model(arrays, size), lambda arrays: guide(arrays, size)

    def first_run(self, batch: Batch) -> Parameters:
        """Runs both programs once, refuses a pair that does not fit together, and gives its parameters."""
        arrays = self.arrays(batch)
        model, guide = self.programs()
        self._training(True)
        with torch.no_grad(), self.running(derive(self.settings.seed, "init")), _called() as called:
            guide_trace = poutine.trace(guide).get_trace(arrays)
            in_guide = self._used() | {_neutral(name) for name in guide_trace.param_nodes}
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(arrays)
            in_model = self._used() | {_neutral(name) for name in model_trace.param_nodes} - in_guide
            for trace in (guide_trace, model_trace):
                _refuse_two_networks(trace)
            terms = objective.terms(guide_trace, model_trace, plate=self.pair.plate, data_size=self.settings.data_size)
            terms.log_weight()  # a law without a density at its own draws says so now
            latents = objective.sites(guide_trace)
            refuse_unsuited(
                latents, objective.sites(model_trace), self.settings.objective, self.pair.plate, constraints.real
            )
            self.shared = tuple(name for name, site in latents.items() if is_shared(site, self.pair.plate))
            self.outermost = objective.outermost(guide_trace, model_trace)
            if "enumeration" in self.settings.objective.needs:
                self.values = support(objective.sites(guide_trace), self.pair.plate)
        found: Parameters = {
            _neutral(f"{name}.{weight}"): parameter
            for name, network in self.networks.items()
            if name in in_guide | in_model
            for weight, parameter in network.named_parameters()
        }
        self.called = called
        self.lent = [(theirs, theirs.detach().clone().requires_grad_()) for theirs in self.store["params"].values()]
        found |= {_neutral(name): own for name, (_, own) in zip(self.store["params"], self.lent, strict=True)}
        if not found:
            raise BadInput(f"the pair {self.pair.name!r} has no parameters to fit")
        self.side = {name: "model" if {name, name.partition(".")[0]} & in_model else "guide" for name in found}
        return found

    def arrays(self, batch: Batch) -> dict[str, Tensor]:
        def array(value: Any) -> Tensor:
            tensor = torch.as_tensor(np.asarray(value))
            dtype = self.dtype if tensor.is_floating_point() else None if tensor.dtype == torch.bool else torch.long
            return tensor.to(self.settings.device, dtype)

        return {name: array(value) for name, value in batch.items()}

    @contextmanager
    def running(self, seed: int) -> Iterator[None]:
        """Programs run with a seed of their own; stories unvalidated, native ones in their parameter store."""
        around = (
            pyro.validation_enabled(False) if self.pair.engine is None else pyro.get_param_store().scope(self.store)  # pyright: ignore[reportArgumentType]
        )
        with around, seeded(seed, self.settings.device), self._lending():
            yield
        self.ppl.paths.clear()

    @contextmanager
    def _lending(self) -> Iterator[None]:
        """What native programs hold (`pyro.module`) has this program's values and mode while they run, and its own after.

        Else two programs of one pair would train the same tensors, and the second would start where the first stopped.
        """
        before = [(theirs.data, theirs.grad) for theirs, _ in self.lent]
        modes = {module: module.training for module in self.called}
        for module, mode in modes.items():
            module.training = mode and self.training
        for theirs, own in self.lent:
            theirs.data, theirs.grad = own.data, None
        try:
            yield
        finally:
            for (theirs, own), (data, gradient) in zip(self.lent, before, strict=True):
                own.grad = theirs.grad if theirs.grad is not None else own.grad
                theirs.data, theirs.grad = data, gradient
            for module, mode in modes.items():
                module.training = mode

    def _realise(self, name: str, net: Network) -> nn.Module:
        if not (net.declared or isinstance(net.spec, nn.Module)):
            raise BadInput(
                f"the network {name!r} is a {type(net.spec).__name__}: on pyro a spec or a torch module is right"
            )
        weights = net.initial_weights(name, self.settings.seed) if net.declared else {}
        module = networks.realise(net, weights, dtype=self.settings.dtype, precision=self.settings.precision)
        # A copy of a framework module: the user's own stays as it is, as on NumPyro.
        return (module if net.declared else copy.deepcopy(module)).to(self.settings.device, self.dtype)

    def _training(self, mode: bool) -> None:
        """Whether networks drop out. A native program's module in eval mode stays there: it may be frozen."""
        self.training = mode
        for network in self.networks.values():
            network.train(mode)

    def _reported(self) -> dict[str, Tensor]:
        """Running moment → what it is of the first pass since this was asked last."""
        found: dict[str, Tensor] = {}
        for name in self.momentum:
            network, _, weight = name.partition(".")
            moments: Any = self.networks[network].moments
            if weight in moments:
                found[name] = moments.pop(weight)
        return found

    def _used(self) -> set[str]:
        used, self.ppl.used = self.ppl.used, set()
        return used


@contextmanager
def _called() -> Iterator[set[nn.Module]]:
    """The modules that are called meanwhile.

    Raises:
        BadInput: a call changes a buffer, which would be lost: weights are all that a run keeps.
    """
    called: set[nn.Module] = set()
    buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def note(module: nn.Module, _: Any) -> None:
        if module not in called:
            called.add(module)
            kept = module.state_dict()
            own = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if name in kept]
            buffers.extend((module, name, buffer, buffer.clone()) for name, buffer in own)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    changed: list[str] = []
    try:
        with _uncompiled():
            yield called
    finally:
        handle.remove()
        for module, name, buffer, before in buffers:
            if not torch.equal(getattr(module, name), before):
                changed.append(f"{type(module).__name__}.{name}")
                setattr(module, name, buffer.copy_(before))
    if changed:
        raise BadInput(
            f"the program keeps mutable state at {changed[0]!r} (batch normalisation?): use a network without it"
        )


@contextmanager
def _uncompiled() -> Iterator[None]:
    """torch.compile would compile our hook with the module. Without dynamo, slow to import, nothing is compiled."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Using `torch\.compile")
        yield


def _neutral(name: str) -> str:
    """torch.compile renames what it wraps: the same weights have the same names with it and without."""
    return name.replace("$$$", ".").replace("_orig_mod.", "")


def _refuse_two_networks(trace: Any) -> None:
    """Pyro's store keeps the first network of a name; a second one would run with weights that nobody fits."""
    for name, site in trace.nodes.items():
        if site["type"] == "param" and "$$$" in name and site["args"][1] is not site["value"]:
            network = name.partition("$$$")[0]
            raise BadInput(f"two networks are called {network!r} in pyro.module: give each a name of its own")


def _nothing(*_: Any) -> None:
    """The guide of a pair without latents."""


def _refuse_settings(settings: Settings) -> None:
    kind, _, number = settings.device.partition(":")
    here = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= here:
        raise BadInput(
            f"the device {settings.device!r} was asked for and PyTorch finds {here or 'no'} GPU here: use --device cpu"
        )
