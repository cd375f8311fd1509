"""A pair's two programs as functions of explicit parameters, which carry engine-neutral names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro import handlers
from numpyro.distributions import biject_to, constraints

from ...guides.pair import Pair
from ...models.batch import Batch as StoryBatch
from ...models.errors import BadInput
from ...models.spec import Network
from ..protocol import Batch, Settings
from ..seeds import derive
from ..sites import is_shared
from ..suited import refuse_unsuited
from ..windows import Carry
from . import networks, objective
from .enumeration import support
from .posteriors import Amortised
from .ppl import PPL, seeded

Parameters = dict[str, Array]
Function = Callable[[Any], None]
Exchange = Callable[[Array], Array]


class Realised:
    """The networks and programs of a pair on NumPyro."""

    def __init__(self, pair: Pair, nets: Mapping[str, Network], settings: Settings) -> None:
        _refuse_settings(settings)
        self.pair, self.settings = pair, settings
        self.dtype = jnp.dtype(settings.dtype)
        self.device = _device(settings.device)
        with jax.default_device(self.device):
            self.networks = {name: _Realisation.of(name, net, settings) for name, net in nets.items()}
        self.momentum = {
            f"{name}.{weight}": share for name, net in nets.items() for weight, share in net.running().items()
        }
        self.untrained = {f"{name}.{weight}" for name, net in nets.items() for weight in net.untrained()}
        self.native: _Native | None = None
        self.side: dict[str, str] = {}
        self.broadcasts = False
        self.shared: tuple[str, ...] = ()
        self.outermost = -2
        self.values: Array | None = None
        self.carry: Carry | None = None

    def programs(
        self, parameters: Parameters, *, training: bool, exchange: Exchange | None = None
    ) -> tuple[Function, Function]:
        """Model and guide as functions of one batch of arrays, with these parameters. exchange: of the posteriors."""
        pair, size = self.pair, self.settings.data_size
        model, guide = pair.model, pair.guide or _nothing
        if pair.engine is None:
            modules = self.modules(parameters)
            if exchange:
                modules |= {
                    name: replace(module, exchange=exchange)
                    for name, module in modules.items()
                    if isinstance(module, Amortised)
                }
            self.ppl = ppl = PPL(modules, register=False, training=training, dtype=self.dtype)
            ppl.carry = self.carry
            return (
                lambda arrays: model(ppl, StoryBatch(arrays, size), modules),
                lambda arrays: guide(ppl, StoryBatch(arrays, size), modules),
            )
        values: dict[str, Any] = self.native.constrained(parameters) if self.native else {}

        def substituted(program: Callable[..., Any]) -> Function:
            return lambda arrays: cast(None, handlers.substitute(program, data=values)(arrays, size))

        return substituted(model), substituted(guide)

    def modules(self, parameters: Parameters) -> dict[str, Any]:
        return {name: network.module(parameters) for name, network in self.networks.items()}

    def first_run(self, batch: Batch) -> Parameters:
        """Runs both programs once, refuses a pair that does not fit together, and gives its initial parameters."""
        arrays = self.arrays(batch)
        every: Parameters = {}
        for network in self.networks.values():
            every |= network.initial
        model, guide = self.programs(every, training=True)
        guide_key, model_key = jax.random.split(seeded(derive(self.settings.seed, "init")))
        guide_trace = handlers.trace(handlers.seed(guide, guide_key)).get_trace(arrays)
        in_guide = self._used()
        replayed = handlers.replay(handlers.seed(model, model_key), trace=guide_trace)
        model_trace = handlers.trace(replayed).get_trace(arrays)
        in_model = self._used()
        objective.terms(guide_trace, model_trace, plate=self.pair.plate, data_size=self.settings.data_size)
        latents = objective.sites(guide_trace)
        refuse_unsuited(
            latents, objective.sites(model_trace), self.settings.objective, self.pair.plate, constraints.real
        )
        self.shared = tuple(name for name, site in latents.items() if is_shared(site, self.pair.plate))
        self.outermost = objective.outermost(guide_trace, model_trace)
        if "enumeration" in self.settings.objective.needs:
            self.values = support(objective.sites(guide_trace), self.pair.plate)
        # NumPyro has no scan inside a plate: such a story's particles are mapped over.
        self.broadcasts = self.pair.engine is None and not self.ppl.scans
        if self.pair.engine is None:
            chosen = {name: weight for name, weight in every.items() if name.partition(".")[0] in in_guide | in_model}
            self.side = {name: "model" if name.partition(".")[0] in in_model else "guide" for name in chosen}
        else:
            self.native = _Native(guide_trace, model_trace)
            chosen, self.side = self.native.initial, self.native.side
        if not chosen:
            raise BadInput(f"the pair {self.pair.name!r} has no parameters to fit")
        # A dtype of its own: `numpyro.param("scale", 1.0)` is weakly typed, and would compile again after one step.
        return {name: jnp.array(value, jnp.result_type(value)) for name, value in chosen.items()}

    def arrays(self, batch: Batch) -> dict[str, Array]:
        def array(value: Any) -> Array:
            value = np.asarray(value)
            return jnp.asarray(value, self.dtype if value.dtype.kind == "f" else None)

        return {name: array(value) for name, value in batch.items()}

    def _used(self) -> set[str]:
        if self.pair.engine is not None:
            return set()
        used, self.ppl.used = self.ppl.used, set()
        return used


class _Realisation(NamedTuple):
    """One network taken apart into named arrays and the rest."""

    names: list[str]
    initial: Parameters
    treedef: Any
    rest: Any

    @classmethod
    def of(cls, name: str, net: Network, settings: Settings) -> _Realisation:
        if not (net.declared or isinstance(net.spec, eqx.Module)):
            raise BadInput(
                f"the network {name!r} is a {type(net.spec).__name__}: on numpyro a spec or an Equinox module is right"
            )
        weights = net.initial_weights(name, settings.seed) if net.declared else {}
        module = networks.realise(net, weights, dtype=settings.dtype, precision=settings.precision)
        arrays, rest = eqx.partition(module, eqx.is_inexact_array)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(arrays)
        names = [f"{name}.{_dotted(path).removeprefix('weights.')}" for path, _ in leaves]
        initial = {name: jnp.asarray(leaf, settings.dtype) for name, (_, leaf) in zip(names, leaves, strict=True)}
        return cls(names, initial, treedef, rest)

    def module(self, parameters: Parameters) -> Any:
        leaves = [parameters.get(name, self.initial[name]) for name in self.names]
        return eqx.combine(jax.tree_util.tree_unflatten(self.treedef, leaves), self.rest)


class _Native:
    """The `param` sites of native programs: unconstrained arrays by name, and the way back."""

    def __init__(self, guide_trace: Mapping[str, Any], model_trace: Mapping[str, Any]) -> None:
        self.transforms: dict[str, Any] = {}
        unconstrained, owner = {}, {}
        for side, trace in (("guide", guide_trace), ("model", model_trace)):
            for site, message in trace.items():
                _refuse_mutable(site, message)
                if message["type"] == "param" and site not in self.transforms:
                    self.transforms[site] = biject_to(message["kwargs"].get("constraint", constraints.real))
                    unconstrained[site] = self.transforms[site].inv(message["value"])
                    owner[site] = side
        leaves, self.treedef = jax.tree_util.tree_flatten_with_path(unconstrained)
        self.names = [_dotted(path).replace("$params", "") for path, _ in leaves]
        self.initial = dict(zip(self.names, (leaf for _, leaf in leaves), strict=True))
        self.side = {name: owner[path[0].key] for name, (path, _) in zip(self.names, leaves, strict=True)}

    def constrained(self, parameters: Parameters) -> dict[str, Any]:
        values = jax.tree_util.tree_unflatten(self.treedef, [parameters[name] for name in self.names])
        return {site: self.transforms[site](value) for site, value in values.items()}


def _dotted(path: Any) -> str:
    return ".".join(str(getattr(part, "name", getattr(part, "key", getattr(part, "idx", part)))) for part in path)


def _nothing(*_: Any) -> None:
    """The guide of a pair without latents."""


def _refuse_mutable(site: str, message: Mapping[str, Any]) -> None:
    if message["type"] == "mutable":
        raise BadInput(f"the program keeps mutable state at {site!r} (batch normalisation?): use a network without it")


def _refuse_settings(settings: Settings) -> None:
    if settings.dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise BadInput("float64 on NumPyro needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")


def _device(name: str) -> Any:
    kind, _, number = name.partition(":")
    what, platform, cure = {
        "cpu": ("CPU", "cpu", "add cpu to JAX_PLATFORMS"),
        "cuda": ("GPU", "gpu", "use --device cpu"),
    }[kind]
    try:
        here = jax.devices(platform)
    except RuntimeError:
        here = []
    if int(number or 0) >= len(here):
        raise BadInput(f"the device {name!r} was asked for and JAX finds {len(here) or 'no'} {what} here: {cure}")
    return here[int(number or 0)]
