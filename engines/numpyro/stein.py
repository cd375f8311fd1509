"""Stein variational gradient descent on NumPyro: `numpyro.contrib.einstein.SVGD` on the model of a fitted pair."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax import Array
from numpyro import handlers, optim
from numpyro.contrib.einstein import SVGD, RBFKernel
from numpyro.infer import init_to_sample

from ...models.errors import BadInput
from ..protocol import Batch
from ..seeds import derive
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
    seed: int,
) -> dict[str, np.ndarray]:
    """Latent site → particles of p(z | x) for batches of one row each, (particles, rows, …); each row by itself.

    bandwidth: factor of the kernel's, which is the median distance² / log(particles).

    Raises:
        BadInput: a discrete latent.
    """

    def moved(arrays: dict[str, Array], key: Array) -> dict[str, Array]:
        model = handlers.block(program.programs(fitted.parameters, training=False)[0], hide_fn=_is_parameter)
        sites = objective.sites(handlers.trace(handlers.seed(model, key)).get_trace(arrays))
        _refuse_discrete(sites)
        kernel = RBFKernel(bandwidth_factor=lambda count: bandwidth / math.log(count))
        guide = {"init_loc_fn": init_to_sample}
        svgd = SVGD(model, optim.Adam(learning_rate), kernel, particles, guide_kwargs=guide)
        state = svgd.init(key, arrays)  # `run` would compile the force a second time, to show it
        state = jax.lax.fori_loop(0, steps, lambda _, state: svgd.update(state, arrays)[0], state)
        found = svgd.get_params(state)
        return {site: found[f"{site}_{svgd.guide.prefix}_loc"] for site in sites if not sites[site]["is_observed"]}

    with jax.default_device(program.device):
        compiled = jax.jit(moved)
        keys = [seeded(derive(seed, "stein", row)) for row in range(len(batches))]
        found = [compiled(program.arrays(batch), key) for batch, key in zip(batches, keys, strict=True)]
    return {site: np.stack([to_numpy(row[site]).reshape(particles, -1) for row in found], 1) for site in found[0]}


def _is_parameter(site: Any) -> bool:
    return site["type"] == "param"


def _refuse_discrete(sites: Any) -> None:
    for name, site in sites.items():
        if not site["is_observed"] and site["fn"].support.is_discrete:
            raise BadInput(f"Stein transport follows the gradient of log p, and the latent {name!r} is discrete")
