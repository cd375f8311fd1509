"""Amortised SVGD as a function of the terms: its direction against a double loop, its two sides, what is refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from guidebook.engines.terms import Sides, Terms
from guidebook.inference import KL, SVGD
from guidebook.inference.divergences.svgd import stein_direction
from guidebook.inference.recipe import override, parse
from guidebook.models import BadInput

B, D = 3, 2
DATA = {"corpus": "stdlib_docs"}


def by_hand(z, score, weight):
    """φ (S, B, D), particle by particle (Liu & Wang 2016, equation 8, with entropy that counts `weight`)."""
    count, direction = len(z), np.zeros_like(z)
    for row in range(z.shape[1]):
        distances = [np.linalg.norm(z[i, row] - z[j, row]) for i in range(count) for j in range(i)]
        h = np.median(distances) ** 2 / np.log(count)
        for i in range(count):
            for j in range(count):
                kernel = np.exp(-((z[j, row] - z[i, row]) ** 2).sum() / h)
                repulsion = -2 / h * (z[j, row] - z[i, row]) * kernel
                direction[i, row] += (kernel * score[j, row] + weight * repulsion) / count
    return direction


@pytest.fixture(params=["numpy", "torch", "jax"])
def array(request):
    with jax.enable_x64(True):
        yield {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}[request.param]


@pytest.mark.parametrize("particles", [2, 3, 4, 7])
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_the_direction_is_that_of_the_double_loop(array, particles, weight):
    z, score = np.random.default_rng(particles).normal(size=(2, particles, B, D))
    found = np.asarray(stein_direction(array(z), array(score), weight))
    np.testing.assert_allclose(found, by_hand(z, score, weight), rtol=1e-12, atol=1e-13)


def test_particles_that_coincide_follow_their_score(array):
    score = np.random.default_rng(0).normal(size=(4, B, D))
    found = np.asarray(stein_direction(array(np.ones((4, B, D))), array(score)))
    np.testing.assert_allclose(found, np.broadcast_to(score.mean(0), found.shape), rtol=1e-12)


def test_each_side_has_its_own_loss_and_the_weight_reaches_both():
    """Two latents are one z; the guide's gradient in z is −φ / S, and nothing of φ is differentiated."""
    rng = np.random.default_rng(1)
    draws = {site: torch.tensor(rng.normal(size=(5, B, width)), requires_grad=True) for site, width in (("a", 2), ("b", 1))}  # fmt: skip
    likelihood, *others = (torch.tensor(rng.normal(size=(5, B)), requires_grad=True) for _ in range(5))
    prior, posterior = ({site: one for site, one in zip("ab", pair, strict=True)} for pair in (others[:2], others[2:]))
    scores = {site: torch.tensor(rng.normal(size=(2, *z.shape))) for site, z in draws.items()}
    terms = Terms({"x": likelihood}, prior, posterior, {}, torch.ones(B), latent=draws, joint_score=scores)
    found = SVGD(particles=5).loss(terms, 0.4)
    assert isinstance(found, Sides)
    expected = KL(estimator="sampled", particles=5).loss(terms, 0.4)
    np.testing.assert_allclose(found.value.detach(), expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(SVGD().reported(terms, 0.4).detach(), expected.detach(), rtol=1e-12)
    by_model = torch.autograd.grad(found.model.sum(), [likelihood, *others], allow_unused=True)
    np.testing.assert_allclose(by_model[0], -1 / 5)
    np.testing.assert_allclose(by_model[1], -0.4 / 5)
    assert by_model[3:] == (None, None)
    by_guide = torch.cat(torch.autograd.grad(found.guide.sum(), [draws["a"], draws["b"]]), -1)
    z = np.concatenate([draw.detach() for draw in draws.values()], -1)
    score = np.concatenate([score[0] + 0.4 * score[1] for score in scores.values()], -1)
    np.testing.assert_allclose(by_guide, -by_hand(z, score, 0.4) / 5, rtol=1e-12)


def test_a_recipe_names_it():
    assert parse({"divergence": {"kind": "svgd", "particles": 10}, "data": DATA}).divergence == SVGD(particles=10)
    assert override(parse({"data": DATA}), ["divergence.kind=svgd"]).divergence == SVGD()
    with pytest.raises(BadInput, match=r"divergence\.particles"):
        parse({"divergence": {"kind": "svgd", "particles": 1}, "data": DATA})


@pytest.mark.parametrize(
    ("prior", "posterior", "sentence"),
    [
        ("hyperspherical_uniform", "von_mises_fisher", "lives on the sphere: use the divergence kl"),
        ("uniform_box", "uniform_box", "lives in a box: use the prior standard_normal or .*, or the divergence kl"),
        ("bernoulli", "bernoulli", "no gradient through its draws"),
    ],
)
def test_a_prior_that_is_not_all_of_space_is_refused(prior, posterior, sentence):
    tables = {"model": {"prior": {"kind": prior}}, "guide": {"posterior": {"kind": posterior}}}
    with pytest.raises(BadInput, match=sentence):
        parse({**tables, "divergence": {"kind": "svgd"}, "data": DATA})
