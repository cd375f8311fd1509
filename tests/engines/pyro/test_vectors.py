"""The networks over vectors against their equations, in float64."""

import numpy as np
import pytest
import torch

from guidebook.engines.pyro.networks import realise
from guidebook.guides.posteriors import DiagonalNormal
from guidebook.models.mlp import MLP
from guidebook.models.priors import StandardNormal
from guidebook.models.spec import Network

torch.set_num_threads(1)
B, H, Z = 3, 6, 2
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def weights_of(network, seed=0, scale=1.0):
    """Weights large enough that every gate matters."""
    rng = np.random.default_rng(seed)
    layout = network.spec.layout(**network.sizes)
    return {name: scale * rng.standard_normal(weight.shape) for name, weight in layout.items()}


def close(ours, reference):
    np.testing.assert_allclose(ours.detach().numpy(), reference, **CLOSE)


def test_posterior_is_the_normal_of_its_head():
    network = Network(DiagonalNormal(), {"features": H, "latent": Z})
    weights = weights_of(network)
    posterior = realise(network, weights, dtype="float64")
    h = np.random.default_rng(0).standard_normal((B, H))
    q = posterior(torch.as_tensor(h))
    assert (q.batch_shape, q.event_shape) == ((B,), (Z,))
    loc, log_variance = np.split(h @ weights["weight"].T, 2, -1)
    close(q.base_dist.loc, loc)
    close(q.base_dist.scale, np.exp(log_variance / 2))


def test_prior_is_standard_normal():
    prior = realise(Network(StandardNormal(dim=Z)), {}, dtype="float64")()
    assert (prior.batch_shape, prior.event_shape) == ((), (Z,))
    z = np.random.default_rng(0).standard_normal((4, Z))
    close(prior.log_prob(torch.as_tensor(z)), -0.5 * (z**2).sum(-1) - Z / 2 * np.log(2 * np.pi))


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_mlp_is_its_equation(activation):
    network = Network(MLP(inputs=3, outputs=2, hidden=(5, 4), activation=activation))
    w = weights_of(network)
    function = {
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "softplus": lambda x: np.log1p(np.exp(x)),
    }
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    expected = x
    for layer in range(3):
        expected = (function[activation](expected) if layer else expected) @ w[f"weight_{layer}"].T
        expected = expected + w[f"bias_{layer}"]
    close(realise(network, w, dtype="float64")(torch.as_tensor(x)), expected)
