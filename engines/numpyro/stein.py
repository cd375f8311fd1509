"""Particle transport on NumPyro: `numpyro.contrib.einstein`'s SVGD and SteinVI on the model of a fitted pair."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpyro import handlers, optim
from numpyro.contrib.einstein import SVGD, RBFKernel, SteinVI
from numpyro.distributions import constraints
from numpyro.infer import init_to_sample

from ...models.errors import BadInput
from ..protocol import Batch
from ..seeds import derive
from ..suited import is_real
from . import objective
from .engine import Program
from .judging import to_numpy
from .ppl import seeded


def transport(
    program: Program,
    fitted: Any,
    batches: list[Batch],
    *,
    particles: int,
    steps: int,
    learning_rate: float,
    bandwidth: float,
    draws: int | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """Latent site → particles of p(z | x) for batches of one row each, (particles, rows, …); each row by itself.

    bandwidth: factor of the kernel's, which is the median distance² / log(particles). draws: from each of as many
    normals as there are particles, (particles · draws, rows, …); None: the particles are points.

    Raises:
        BadInput: a discrete latent; for normals one that is not all of R^D.
    """

    def moved(arrays: dict[str, Array], key: Array) -> dict[str, Array]:
        model = handlers.block(program.programs(fitted.parameters, training=False)[0], hide_fn=_is_parameter)
        sites = objective.sites(handlers.trace(handlers.seed(model, key)).get_trace(arrays))
        _refuse_discrete(sites)
        latents = {name: site for name, site in sites.items() if not site["is_observed"]}
        kernel = RBFKernel(bandwidth_factor=lambda count: bandwidth / math.log(count))
        adam = optim.Adam(learning_rate)
        if draws is None:
            stein = SVGD(model, adam, kernel, particles, guide_kwargs={"init_loc_fn": init_to_sample})
        else:
            stein = SteinVI(model, _normals(latents), adam, kernel, particles)
        state = stein.init(key, arrays)  # `run` would compile the force a second time, to show it
        state = jax.lax.fori_loop(0, steps, lambda _, state: stein.update(state, arrays)[0], state)
        found = stein.get_params(state)
        if draws is None:
            return {name: found[f"{name}_{stein.guide.prefix}_loc"] for name in latents}
        noise = dict(zip(latents, jax.random.split(jax.random.fold_in(key, 1), len(latents)), strict=True))
        return {name: _drawn(found, name, draws, noise[name]) for name in latents}

    with jax.default_device(program.device):
        compiled = jax.jit(moved)
        keys = [seeded(derive(seed, "stein", row)) for row in range(len(batches))]
        found = [compiled(program.arrays(batch), key) for batch, key in zip(batches, keys, strict=True)]
    return {
        site: np.stack([to_numpy(row[site]).reshape(particles * (draws or 1), -1) for row in found], 1)
        for site in found[0]
    }


def _normals(latents: dict[str, Any]) -> Any:
    """A guide with a normal for each latent, around a draw from the prior and narrow at first.

    Its parameters are unconstrained: SteinVI takes a constrained one through its transform twice where it forms the
    density of the mixture, and then settles on scales that are far too small.

    Raises:
        BadInput: a latent that is not all of R^D.
    """
    for name, site in latents.items():
        if not is_real(site["fn"], constraints.real):
            raise BadInput(f"Stein mixtures are of normals, and the latent {name!r} is not all of R^D")

    def guide(*_: Any) -> None:
        for name, site in latents.items():
            loc: Any = numpyro.param(f"{name}/loc", site["fn"].sample)
            spread: Any = numpyro.param(f"{name}/log_scale", jnp.full_like(site["value"], -2.0))
            numpyro.sample(name, dist.Normal(loc, jnp.exp(spread)).to_event(site["fn"].event_dim))

    return guide


def _drawn(parameters: dict[str, Array], latent: str, draws: int, key: Array) -> Array:
    """(particles · draws, …): as many from each component."""
    loc, scale = parameters[f"{latent}/loc"], jnp.exp(parameters[f"{latent}/log_scale"])
    noise = jax.random.normal(key, (len(loc), draws, *loc.shape[1:]), loc.dtype)
    return (loc[:, None] + scale[:, None] * noise).reshape(-1, *loc.shape[1:])


def _is_parameter(site: Any) -> bool:
    return site["type"] == "param"


def _refuse_discrete(sites: Any) -> None:
    for name, site in sites.items():
        if not site["is_observed"] and site["fn"].support.is_discrete:
            raise BadInput(f"Stein transport follows the gradient of log p, and the latent {name!r} is discrete")
