"""Stein variational gradient descent on Pyro: `pyro.infer.SVGD` on the model of a fitted pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
from pyro import poutine
from pyro.infer import SVGD, RBFSteinKernel
from pyro.optim import Adam  # pyright: ignore[reportAttributeAccessIssue]  (made at run time)

from ...models.errors import BadInput
from ..protocol import Batch
from ..seeds import derive
from . import objective
from .engine import Program
from .judging import to_numpy


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

    bandwidth: factor of the kernel's, which is the median squared distance / log(particles + 1) in each dimension.

    Raises:
        BadInput: draws, for Pyro ships no Stein mixtures; a discrete latent; a native model that does not broadcast over a plate of particles.
    """
    if draws is not None:
        raise BadInput('Pyro ships no Stein mixtures: run.on("numpyro") would be right, or components = "point"')
    model, _ = program.programs()
    model = poutine.block(model, hide_types=["param"])
    program._training(False)
    store, found = pyro.get_param_store(), []
    for row, batch in enumerate(batches):
        arrays = program.arrays(batch)
        with program.running(derive(seed, "stein", row)), store.scope(store.get_state()):
            _refuse_discrete(poutine.trace(model).get_trace(arrays))
            svgd = SVGD(
                model,
                RBFSteinKernel(bandwidth),
                Adam({"lr": learning_rate}),
                particles,
                -program.outermost - 1,
                mode="multivariate",
            )
            try:
                for _ in range(steps):
                    svgd.step(arrays)
            except RuntimeError as error:
                raise BadInput(
                    f"the model of {program.pair.name!r} does not run in a plate of particles: {error}"
                ) from None
            found.append({site: to_numpy(value) for site, value in svgd.get_named_particles().items()})
    return {site: np.stack([row[site].reshape(particles, -1) for row in found], 1) for site in found[0]}


def _refuse_discrete(trace: Any) -> None:
    for name, site in objective.sites(trace).items():
        if not site["is_observed"] and site["fn"].support.is_discrete:
            raise BadInput(f"Stein transport follows the gradient of log p, and the latent {name!r} is discrete")
