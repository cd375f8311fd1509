"""∂/∂λ E f(z) by the path against its closed form, for the families of Kingma & Welling 2014, §2.4 that the libraries ship.

By inverse CDF: exponential, Cauchy, logistic, Rayleigh (a Weibull of shape 2), Pareto, Weibull, reciprocal
(log-uniform), Gompertz, Gumbel, Erlang (a gamma of whole shape). By location and scale: Laplace, Student, uniform,
triangular (a sum of two uniforms), normal. By composition: log-normal, gamma, Dirichlet, beta, χ², F.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as npd
import pyro.distributions as pyd
import pytest
import torch
from pyro.distributions import transforms
from scipy.integrate import quad

pytestmark = pytest.mark.usefixtures("_float64")
DRAWS = 100_000
GAMMA = 0.5772156649015329
"""Euler's."""

CASES = {
    # family: (of λ, f, λ, ∂/∂λ E f)
    "exponential": (lambda d, r: d.Exponential(r), lambda z: z, 1.7, lambda r: -(r**-2)),
    "cauchy": (lambda d, m: d.Cauchy(m, 0.5), "tanh", 0.3, None),
    "logistic": (lambda d, s: d.Logistic(0.4, s), lambda z: z**2, 0.8, lambda s: 2 * s * np.pi**2 / 3),
    "rayleigh": (lambda d, s: _weibull(d, s, 2.0), lambda z: z**2, 1.3, lambda s: 2 * s),
    "pareto": (lambda d, a: d.Pareto(_like(d, 1.0), a), lambda z: 1 / z, 2.5, lambda a: (a + 1) ** -2),
    "weibull": (lambda d, s: _weibull(d, s, 1.0), lambda z: z, 0.9, lambda s: 1.0),
    "reciprocal": (lambda d, b: _reciprocal(d, b), "log", 3.0, lambda b: 0.5 / b),
    "gompertz": (lambda d, c: _gompertz(d, c), "expm1", 0.7, lambda c: -(c**-2)),
    "gumbel": (lambda d, s: d.Gumbel(_like(d, 0.5), s), lambda z: z, 1.2, lambda s: GAMMA),
    "erlang": (lambda d, r: d.Gamma(3.0, r), lambda z: z**2, 1.4, lambda r: -2 * 12 * r**-3),
    "laplace": (lambda d, b: d.Laplace(0.3, b), lambda z: z**2, 0.6, lambda b: 4 * b),
    "student": (lambda d, s: d.StudentT(9.0, 0.5, s), lambda z: z**2, 1.1, lambda s: 2 * s * 9 / 7),
    "uniform": (lambda d, b: d.Uniform(0.0, b), lambda z: z**3, 1.5, lambda b: 3 * b**2 / 4),
    "triangular": (
        lambda d, w: d.Uniform(_ends(d, 0.0), _ends(d, 1.0) * w).to_event(1),
        lambda z: z.sum(-1) ** 2,
        1.3,
        lambda w: 2 * w * 7 / 6,
    ),
    "normal": (lambda d, s: d.Normal(0.5, s), lambda z: z**4, 0.8, lambda s: 12 * s * 0.25 + 12 * s**3),
    "log-normal": (lambda d, s: d.LogNormal(0.1, s), lambda z: z, 0.4, lambda s: s * np.exp(0.1 + s**2 / 2)),
    "gamma": (lambda d, a: d.Gamma(a, 1.5), lambda z: z**2, 0.7, lambda a: (2 * a + 1) / 1.5**2),
    "dirichlet": (
        lambda d, a: d.Dirichlet(_ends(d, 1.0) * a),
        lambda z: z[..., 0] ** 2,
        0.8,
        # E z² = (a + 1) / (2 (2 a + 1))
        lambda a: -0.5 / (2 * a + 1) ** 2,
    ),
    "beta": (lambda d, a: d.Beta(a, 2.0), lambda z: z, 1.6, lambda a: 2 / (a + 2) ** 2),
    "chi-squared": (lambda d, k: d.Chi2(k), lambda z: z**2, 2.5, lambda k: 2 * k + 2),
    "f": (lambda d, b: d.FisherSnedecor(3.0, b), lambda z: z, 12.0, lambda b: -2 / (b - 2) ** 2),
}
SHIPPED = {
    "pyro": set(CASES),
    "numpyro": set(CASES) - {"f"},
}


def _like(d, number):
    return torch.tensor(number) if d is pyd else number


def _ends(d, number):
    return torch.full((2,), number) if d is pyd else jnp.full(2, number)


def _weibull(d, scale, shape):
    return d.Weibull(scale, _like(d, shape))


def _reciprocal(d, high):
    """On (1, high); Pyro ships it as the exponential of a uniform."""
    if d is npd:
        return d.LogUniform(1.0, high)
    return d.TransformedDistribution(d.Uniform(0 * high, high.log()), [transforms.ExpTransform()])


def _gompertz(d, shape):
    """P(z > x) = exp(−shape (e^x − 1)); in Pyro log(1 + y), y exponential."""
    if d is npd:
        return d.Gompertz(shape, 1.0)
    return d.TransformedDistribution(
        d.Exponential(shape), [transforms.AffineTransform(1.0, 1.0), transforms.ExpTransform().inv]
    )


def pathwise(engine, family, f, value):
    """(DRAWS,) of ∂ f(z) / ∂λ: each draw with a λ of its own."""
    if engine == "pyro":
        torch.manual_seed(0)
        parameter = torch.full((DRAWS, 1), value, dtype=torch.float64, requires_grad=True)
        f = getattr(torch, f) if isinstance(f, str) else f
        event = family(pyd, torch.tensor(value)).event_shape
        fn = family(pyd, parameter if event else parameter.squeeze(-1))
        return torch.autograd.grad(f(fn.rsample()).sum(), parameter)[0].squeeze(-1).numpy()
    f = getattr(jnp, f) if isinstance(f, str) else f
    parameter = jnp.full((DRAWS, 1), value)
    event = family(npd, value).event_shape

    def total(parameter):
        return f(family(npd, parameter if event else parameter[:, 0]).sample(jax.random.key(0))).sum()

    return np.asarray(jax.grad(total)(parameter))[:, 0]


def exact(family, value):
    closed = CASES[family][3]
    if closed is not None:
        return closed(value)
    density = lambda t: 0.5 / np.pi / (t**2 + 0.25)  # noqa: E731 - E tanh(m + z) of a Cauchy, by quadrature
    return quad(lambda t: density(t) / np.cosh(value + t) ** 2, -50, 50, points=(-value, 0.0), limit=200)[0]


@pytest.mark.parametrize("family", CASES)
def test_the_path_has_the_gradient_of_the_expectation(engine, family):
    if family not in SHIPPED[engine]:
        pytest.skip(f"{engine} ships no {family}")
    made, f, value, _ = CASES[family]
    found = pathwise(engine, made, f, value)
    error = found.std() / np.sqrt(DRAWS)
    assert np.isfinite(found).all()
    assert abs(found.mean() - exact(family, value)) <= 5 * error + 1e-9
