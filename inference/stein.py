"""Particles of p(z | x) by Stein variational gradient descent (Liu & Wang 2016), or a mixture of normals of them, on the
model of a fitted run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..engines import load
from ..models.errors import BadInput
from .run import Run


def transport(
    run: Run,
    batch: Mapping[str, Any],
    *,
    particles: int = 50,
    steps: int = 500,
    learning_rate: float = 0.1,
    bandwidth: float = 1.0,
    components: Literal["point", "normal"] = "point",
    draws: int = 100,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Latent site → (particles, rows, dimensions): draws from the prior, moved until they stand for p(z | x).

    The engine's own: `pyro.infer.SVGD` or `numpyro.contrib.einstein.SVGD`, `run.on(engine)` says which, with an RBF
    kernel and Adam. The guide has no part in it, and the model is left as it is. Rows are transported one by one: in a
    common space of all rows the kernel would see no particle near another. Costs `steps` gradients of `particles` rows
    for each row. With few particles the variance is too small under the median heuristic; a wide kernel (bandwidth 40)
    matches mean and covariance of a posterior that is nearly normal, and no more of its shape than those.

    With `components = "normal"` every particle is the mean and the scale of a diagonal normal, and what is fitted is
    their even mixture: Stein mixture inference (Rønning et al. 2024), `numpyro.contrib.einstein.SteinVI`, NumPyro alone.
    It bends around a posterior that no diagonal normal fits, with five to ten components where points need hundreds.

    Args:
        batch: rows as `run.batches(split).batch(place)` gives them; fillers are left out.
        bandwidth: factor of the kernel's, which is the median distance² of the particles over the log of their number.
        draws: what is returned from each normal: (particles · draws, rows, dimensions), component by component.

    Raises:
        BadInput: a pair without latents, with discrete ones, or fewer than two particles; normals for a latent that is not
            all of R^D, or on Pyro.
    """
    if run.pair.guide is None:
        raise BadInput(f"the pair {run.pair.name!r} has no latents that could be transported")
    if particles < 2:
        raise BadInput(f"particles = {particles}: Stein transport needs two at least, which drive each other apart")
    real = np.flatnonzero(np.asarray(batch["weight"]) > 0)
    rows = [{name: np.asarray(array)[[row]] for name, array in batch.items()} for row in real]
    # One row is a data set of its own: the likelihood of a minibatch would be scaled up to that of all data.
    program = run.realised(1)
    state = program.load_weights(program.init(rows[0]), run.weights)
    return load(run.recipe.engine).transport(
        program,
        state,
        rows,
        particles=particles,
        steps=steps,
        learning_rate=learning_rate,
        bandwidth=bandwidth,
        draws=draws if components == "normal" else None,
        seed=seed,
    )
