"""Normalising flows: inverses, Jacobians, densities and their gradients, on both engines."""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.guides.posteriors import FlowNormal
from guidebook.models.flows import CouplingFlow, InverseAutoregressiveFlow, PlanarFlow
from guidebook.models.priors import FlowPrior

pytestmark = pytest.mark.usefixtures("_float64")
Z, H, B = 2, 3, 4
FEATURES = np.random.default_rng(0).normal(size=(B, H))
FLOWS = [PlanarFlow(layers=3), CouplingFlow(layers=3, hidden=5), InverseAutoregressiveFlow(layers=2, hidden=5)]


@pytest.fixture(params=FLOWS, ids=lambda flow: flow.kind)
def flow(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["prior", "posterior"])
def case(request, flow):
    """The spec, its weights, its sizes and what it is given."""
    spec, sizes, given = (
        (FlowPrior(dim=Z, flow=flow), {}, ())
        if request.param
        else (FlowNormal(flow=flow), {"features": H, "latent": Z}, (FEATURES,))
    )
    rng = np.random.default_rng(3)
    return (
        spec,
        {name: rng.normal(size=weight.shape, scale=0.6) for name, weight in spec.layout(**sizes).items()},
        sizes,
        given,
    )


def law_of(both, engine, case, **moved):
    spec, weights, sizes, given = case
    return both.Law(engine, both.realised(engine, spec, weights | moved, **sizes), *given)


def test_the_density_integrates_to_one(both, engine, case):
    law = law_of(both, engine, case)
    draws = law.draws(4000)
    low, high = draws.min(0), draws.max(0)
    low, high = low - (high - low) / 2, high + (high - low) / 2
    share = (np.arange(500) + 0.5) / 500
    grid = np.stack(np.meshgrid(share, share), -1).reshape(-1, *[1] * (draws.ndim - 2), Z)
    mass = np.exp(law.log_prob(low + (high - low) * grid)).sum(0) * (high - low).prod(-1) / 500**2
    np.testing.assert_allclose(mass, 1, atol=5e-3)


def test_a_draw_keeps_its_density(both, engine, case):
    """The density cached in the sampling direction is that of the inverse."""
    law = law_of(both, engine, case)
    if engine == "pyro":
        drawn = law.fn.rsample((5,))
        cached, anew = law.fn.log_prob(drawn), law.fn.log_prob(drawn.clone())
        np.testing.assert_allclose(cached.detach(), anew.detach(), rtol=1e-9, atol=1e-9)
        assert cached is law.fn.log_prob(drawn)
    else:
        import jax

        drawn = law.fn.sample(jax.random.key(0), (5,))
        cached, anew = law.fn.log_prob(drawn), law.fn.log_prob(drawn + 0.0)
        np.testing.assert_allclose(cached, anew, rtol=1e-9, atol=1e-9)
        assert cached is law.fn.log_prob(drawn)


def test_the_inverse_and_the_jacobian(both, engine, flow):
    """log |det| against a Jacobian by central differences."""
    rng = np.random.default_rng(4)
    spec = FlowPrior(dim=Z, flow=flow)
    weights = {name: rng.normal(size=weight.shape) for name, weight in spec.layout().items()}
    law = both.Law(engine, both.realised(engine, spec, weights))
    flows = both.engine_module(engine, "flows")

    def apply(name, z):
        found = getattr(flows, name)(flow, law.fn.layers, law.array(z))
        return tuple(np.asarray(part.detach() if engine == "pyro" else part) for part in found)

    z = rng.normal(size=(6, Z))
    there, log_determinant = apply("forward", z)
    back, same = apply("inverse", there)
    np.testing.assert_allclose(back, z, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(same, log_determinant, rtol=1e-7, atol=1e-8)
    step = 1e-6 * np.eye(Z)
    jacobian = np.stack([(apply("forward", z + s)[0] - apply("forward", z - s)[0]) / 2e-6 for s in step], -1)
    np.testing.assert_allclose(np.log(np.abs(np.linalg.det(jacobian))), log_determinant, rtol=1e-6, atol=1e-7)


def test_each_dimension_reads_only_those_before_it():
    for flow, layer in ((FLOWS[2], 0), (FLOWS[2], 1)):
        inputs, outputs, _ = flow.masks(layer, 5)
        reach = (outputs @ inputs)[:5] > 0
        order = np.arange(5) if layer == 0 else np.arange(5)[::-1]
        assert not reach[order[:, None] <= order].any()
        assert reach[order[:, None] > order].all() or flow.hidden < 5


def test_gradients_of_the_density_match_finite_differences(both, engine, case):
    """At a fixed value, through the inverse as well: the planar one is a root."""
    _, weights, sizes, _ = case
    name = next(name for name in weights if name.startswith(("input_0", "bias_0")))
    direction = np.random.default_rng(5).normal(size=weights[name].shape)
    z = np.random.default_rng(6).normal(size=(5, B, Z) if sizes else (5, Z))

    def total(step):
        return law_of(both, engine, case, **{name: weights[name] + step * direction}).log_prob(z).sum()

    law = law_of(both, engine, case)
    gradient = both.gradient_of(law, lambda fn: fn.log_prob(law.array(z)).sum(), name)
    slope = (total(1e-6) - total(-1e-6)) / 2e-6
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_the_engines_agree(both, case):
    ours, theirs = (law_of(both, engine, case) for engine in both.engines)
    z = ours.draws(5)
    np.testing.assert_allclose(ours.log_prob(z), theirs.log_prob(z), rtol=1e-8, atol=1e-9)
