"""The VRNN on both engines: parity, the model's own states in the guide, masks, and its relatives."""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.engines.filtering import Filtering
from guidebook.guides import PAIRS

pytestmark = pytest.mark.usefixtures("_float64")
PAIR = PAIRS["vrnn"]
D, B, T = 7, 3, 5
CASES = [
    ("lstm", "filtering", True, "conditional_normal"),
    ("gru", "filtering", False, "standard_normal"),
    ("gru", "smoothing", True, "conditional_normal"),
    ("lstm", "smoothing", False, "diagonal_normal"),
    ("lstm", "prior", False, "conditional_normal"),
]


def tables(cell, proposal, residual, prior):
    hidden = {"hidden": [5], "activation": "relu"} if prior == "conditional_normal" else {}
    small = {"hidden": [6]}
    model = {
        "prior": {"kind": prior, "dim": 4, **hidden},
        "inputs": small,
        "latents": small,
        "features": 5,
        "decoder": small,
        "cell": {"kind": cell, "hidden": 6},
    }
    guide = {"proposal": proposal, "residual": residual, "features": 5, "backward": {"kind": cell, "hidden": 3}}
    return PAIR.model_spec.model_validate(model), PAIR.guide_spec.model_validate(guide)


def music(lengths=(5, 3, 1), width=T, junk=0.0):
    lengths = np.array(lengths)
    rng = np.random.default_rng(0)
    whole = (rng.random((len(lengths), T, D)) < 0.3).astype(float)
    x = np.full((len(lengths), width, D), junk)
    mask = np.arange(width) < lengths[:, None]
    x[:, :T][mask[:, :T]] = whole[mask[:, :T]]
    return {
        "x": x,
        "mask": mask,
        "lengths": lengths.astype(np.int32),
        "weight": np.ones(len(lengths), np.float32),
        "index": np.arange(len(lengths), dtype=np.int32),
    }


def realised(both, engine, case, batch, **settings):
    model, guide = tables(*case)
    found = both.program(engine, PAIR, PAIR.realisable(model, guide, D), data_size=B, **settings)
    return found, found.init(batch)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_engines_agree(both, case):
    batch = music()
    pairs = [realised(both, engine, case, batch) for engine in both.engines]
    (one, start), (other, state) = pairs
    state = other.load_weights(state, one.weights(start))
    for particles in (1, 3):
        terms = [fit.terms(at, batch, seed=1, particles=particles) for fit, at in ((one, start), (other, state))]
        for field in ("log_likelihood", "log_prior", "log_posterior", "kl"):
            for site, value in getattr(terms[0], field).items():
                np.testing.assert_allclose(value, getattr(terms[1], field)[site], rtol=1e-8, atol=1e-12, err_msg=field)
    weights = [fit.log_weights(at, batch, seed=1, particles=4, rows=6) for fit, at in ((one, start), (other, state))]
    np.testing.assert_allclose(*weights, rtol=1e-9)
    draws = [fit.draws(at, batch, seed=1, particles=2)["z"] for fit, at in ((one, start), (other, state))]
    assert draws[0].shape == (2, B, T, 4)
    np.testing.assert_allclose(*draws, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_gradients_agree_at_the_same_latents(both, case):
    batch = music()
    found = {}
    latents = None
    for engine in both.engines:
        fit, state = realised(both, engine, case, batch)
        if latents is None:
            weights, latents = fit.weights(state), fit.draws(state, batch, seed=3, particles=1)
        state = fit.load_weights(state, weights)
        fit.pair = both.drawing(engine, PAIR, {"z": latents["z"].transpose(0, 2, 1, 3)})
        found[engine] = both.gradients(fit, state, batch)[0]
    for name, gradient in found["pyro"].items():
        np.testing.assert_allclose(gradient, found["numpyro"][name], rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_program_and_its_steps_have_one_log_joint(both, engine, case):
    """All steps at once, and one after another in the filter."""
    batch = music()
    fit, state = realised(both, engine, case, batch)
    filtered = fit.filter(state, batch, seed=2, particles=3, filtering=Filtering("none"))
    joint = fit.log_joint(state, batch, {"z": filtered.latents.transpose(1, 0, 2, 3)})
    np.testing.assert_allclose(filtered.log_likelihood + filtered.log_prior, joint, rtol=1e-10)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_padding_changes_neither_bound_nor_gradient(both, engine, case):
    found = []
    for batch in (music(), music(width=T + 3, junk=1.0)):
        fit, state = realised(both, engine, case, batch)
        weights = fit.weights(state) if not found else weights  # noqa: F821
        state = fit.load_weights(state, weights)
        terms = fit.terms(state, batch, seed=1)
        size = fit.filter(state, batch, seed=1, particles=3, filtering=Filtering(threshold=1.0)).log_evidence
        noise = np.zeros((1, batch["x"].shape[1], B, 4))
        noise[:, :T] = np.random.default_rng(1).normal(size=(1, T, B, 4))
        fit.pair = both.drawing(engine, PAIR, {"z": noise})
        found.append((terms.elbo(), size, both.gradients(fit, state, batch)[0]))
    (elbo, size, gradients), (other_elbo, other_size, others) = found
    np.testing.assert_allclose(elbo, other_elbo, rtol=1e-10)
    np.testing.assert_allclose(size, other_size, rtol=1e-10)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-8, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_vrnn_i_is_the_vrnn_whose_prior_is_frozen(both, engine):
    batch = music()
    frozen, state = realised(both, engine, ("lstm", "filtering", False, "conditional_normal"), batch)
    weights = frozen.weights(state)
    zeroed = {name: 0 * value if name.startswith("prior.") else value for name, value in weights.items()}
    state = frozen.load_weights(state, zeroed)
    fixed, plain = realised(both, engine, ("lstm", "filtering", False, "standard_normal"), batch)
    plain = fixed.load_weights(plain, {name: zeroed[name] for name in fixed.weights(plain)})
    one, other = frozen.terms(state, batch, seed=1), fixed.terms(plain, batch, seed=1)
    np.testing.assert_allclose(one.elbo(), other.elbo(), rtol=1e-12)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_the_two_averages_differ_on_ragged_data(both, engine):
    from guidebook.inference.sequence_evaluation import Average

    fit, state = realised(both, engine, CASES[0], music())
    bounds = fit.filter(state, music(), seed=0, particles=2, filtering=Filtering()).log_evidence
    found = Average.of(bounds, np.array([5, 3, 1]))
    assert found.total_step == pytest.approx(bounds.sum() / 9)
    assert found.per_sequence == pytest.approx(np.mean(bounds / [5, 3, 1]))
    assert abs(found.total_step - found.per_sequence) > 1e-3


class Windows:
    """The pair `linear_gaussian` of 3 rows and 11 steps at random parameters, its latents fixed."""

    PAIR = PAIRS["linear_gaussian"]
    LATENTS = np.random.default_rng(5).normal(size=(1, 11, 3, 2))

    def __init__(self, both, engine, truncate, latents=None):
        model = self.PAIR.model_spec.model_validate({"dynamics": {"decay": 0.7}})
        networks = self.PAIR.realisable(model, self.PAIR.guide_spec(proposal="filtering"), 2)
        self.batch = {
            "x": np.random.default_rng(6).normal(size=(3, 11, 2)),
            "mask": np.arange(11) < np.array([[11], [7], [4]]),
            "weight": np.array([1, 1, 0], np.float32),
            "index": np.arange(3, dtype=np.int32),
        }
        self.both = both
        self.fit = both.program(engine, self.PAIR, networks, data_size=3, truncate=truncate)
        self.state = self.fit.init(self.batch)

    def run(self):
        return self.both.gradients(self.fit, self.state, self.batch)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_a_window_of_the_whole_sequence_is_no_window(both, engine):
    (gradients, info), (others, other) = (Windows(both, engine, size).run() for size in (None, 11))
    assert info["rows"] == other["rows"] == 2
    if engine == "numpyro":  # whose keys differ from window to window
        return
    for key, value in info.items():
        assert value == pytest.approx(other[key], rel=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-10)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
@pytest.mark.parametrize("size", [2, 4])
def test_windows_carry_the_state_and_cut_the_gradient(both, engine, size):
    """With a narrow posterior the path is the posterior's mean, and so is what one window leaves to the next."""
    found = []
    for truncate in (None, size):
        one = Windows(both, engine, truncate)
        weights = one.fit.weights(one.state)
        one.state = one.fit.load_weights(one.state, weights | {"gains.log_variance": np.full(2, -40.0)})
        found.append(one.run())
    (gradients, info), (others, other) = found
    assert info["rows"] == other["rows"] == 2
    for key in ("objective", "log_likelihood/x", "kl/z"):
        assert other[key] == pytest.approx(info[key], rel=1e-6)
    np.testing.assert_allclose(
        others["dynamics.log_noise_variance"], gradients["dynamics.log_noise_variance"], rtol=1e-6
    )
    assert abs(others["gains.by_state"] - gradients["gains.by_state"]).max() > 1e-3


def test_windows_ask_for_a_sum_over_steps(both):
    from guidebook.inference.divergences import IWAE
    from guidebook.models.errors import BadInput

    model, guide = tables(*CASES[0])
    fit = both.program(
        "pyro", PAIR, PAIR.realisable(model, guide, D), data_size=B, divergence=IWAE(particles=2), truncate=2
    )
    with pytest.raises(BadInput, match="no sum over steps"):
        fit.init(music())


def test_a_state_of_other_sequences_is_refused():
    from guidebook.engines.windows import Carry
    from guidebook.models.errors import BadInput

    start = Carry((np.zeros((2, 3, 4)), np.zeros((2, 3, 4))))
    assert start.first((2, 3), np.ones) is start.start
    assert start.first((2, 3), np.ones)[0].shape == Carry().first((2, 3, 4), np.ones).shape
    with pytest.raises(BadInput, match=r"of particles and sequences \(2, 3\), and this window has \(2, 5\)"):
        start.first((2, 5), np.ones)
