from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from guidebook.engines.protocol import Posterior
from guidebook.engines.terms import Terms
from guidebook.inference.accounting import account, first
from guidebook.inference.evaluate import evaluate_program, validate_program
from guidebook.inference.tables import number

KEYS = {
    *("sentences", "tokens", "elbo", "reconstruction", "kl", "kl_per_dimension", "iw_nll", "particles"),
    *("iw_nll_standard_error", "perplexity", "perplexity_unit", "perplexity_elbo", "perplexity_bound"),
    *("mi", "mi_ceiling", "active_units", "kl_aggregate", "sites"),
}


def array_batches(x, size):
    for start in range(0, len(x), size):
        rows = np.arange(start, start + size)
        filler = rows >= len(x)
        rows = np.where(filler, start, rows)
        yield {"x": x[rows], "index": rows, "weight": np.where(filler, 0.0, 1.0)}


def evaluated(program, batches, particles=20, text=False, seed=0, **settings):
    return evaluate_program(
        program,
        None,
        batches,
        particles=particles,
        rows=64,
        seed=seed,
        text=text,
        unit="word" if text else None,
        **settings,
    )


def test_an_exact_guide_reaches_the_evidence(toys):
    toy = toys.LinearGaussian()
    x = toy.data(50)
    found = evaluated(toy, array_batches(x, 16), particles=5)
    assert found.sentences == 50
    assert found.iw_nll == pytest.approx(-toy.evidence(x).mean(), rel=1e-12)
    assert found.iw_nll_standard_error == pytest.approx(0.0, abs=1e-12)
    assert found.iw_effective_particles == pytest.approx(5.0)


def test_bounds_are_ordered_and_tighten_towards_the_evidence(toys):
    """−log p(x) ≤ IW-K ≤ IW-1 = −ELBO in expectation, over 2,000 rows; the last within its standard error."""
    toy = toys.LinearGaussian(shift=0.3, stretch=1.4)
    x = toy.data(2_000)
    batches = list(array_batches(x, 200))
    found = [evaluated(toy, batches, particles) for particles in (1, 5, 50, 500)]
    nll = [one.iw_nll for one in found]
    evidence = -toy.evidence(x).mean()
    assert nll == sorted(nll, reverse=True)
    assert -found[0].elbo == pytest.approx(nll[0], abs=0.1)
    assert abs(nll[-1] - evidence) < 0.01
    assert found[0].iw_nll_standard_error is None
    gap = toys.gaussian_kl  # KL(q ‖ posterior) in standardised units: shift and stretch are the same everywhere
    scale = (1.0 + (toy.loading**2).sum(0) / toy.noise**2) ** -0.5
    expected = gap(0.3 / scale, np.full(2, 1.4)).sum()
    assert -found[-1].elbo - evidence == pytest.approx(expected, abs=0.03)


def test_kl_parts_add_up(toys):
    toy = toys.LinearGaussian(dimensions=3)
    found = evaluated(toy, array_batches(toy.data(300), 64))
    loc, scale = toy.guide({"x": toy.data(300)})
    np.testing.assert_allclose(found.kl_per_dimension, toys.gaussian_kl(loc, scale).mean(0))
    assert found.kl == pytest.approx(sum(found.kl_per_dimension))
    assert found.elbo == pytest.approx(-found.reconstruction - found.kl)
    assert found.kl_aggregate == pytest.approx(found.kl - found.mi)
    assert 0 < found.mi < min(found.kl + 0.1, found.mi_ceiling)
    assert found.mi_ceiling == np.log(300)
    assert found.active_units == 3
    assert found.sites["z"].kl_from == "analytic"
    assert found.perplexity is None
    assert found.tokens is None


def test_filler_rows_count_nowhere(toys):
    toy = toys.LinearGaussian()
    x = toy.data(10)
    whole, ragged = evaluated(toy, array_batches(x, 10)), account(toy, None, array_batches(x, 7), seed=0)
    assert ragged.rows.tolist() == list(range(10))
    assert ragged.total_kl.mean() == pytest.approx(whole.kl)


def all_sentences():
    return [list(words) for length in range(4) for words in itertools.product((4, 5, 6), repeat=length)]


def test_three_words_three_steps_against_quadrature(toys):
    """Every sentence of up to three of three words, its log p(x) by Gauss–Hermite quadrature."""
    toy = toys.BigramToy()
    batch = toys.sentence_batch(all_sentences(), filler=2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    likelihood = np.stack([toy.likelihood(np.full((len(batch["weight"]), 1), z), batch) for z in nodes])
    exact = np.log((weights / weights.sum()) @ np.exp(likelihood))[:40]
    found = {k: evaluated(toy, [batch], particles=k, text=True) for k in (1, 2_000)}
    nll = found[2_000].iw_nll
    assert abs(nll + exact.mean()) < 4 * found[2_000].iw_nll_standard_error + 1e-3
    assert -found[1].elbo > nll
    assert found[1].sentences == 40
    assert found[1].tokens == sum(len(words) + 1 for words in all_sentences())
    tokens = found[1].tokens
    assert found[2_000].perplexity == pytest.approx(np.exp(40 * nll / tokens))
    assert found[2_000].perplexity_elbo == pytest.approx(np.exp(-40 * found[2_000].elbo / tokens))
    assert found[2_000].perplexity_unit == "word"
    assert "2000 particles" in found[2_000].perplexity_bound


def test_a_language_model_has_an_exact_likelihood(toys):
    toy = toys.BigramToy(latent=False)
    batch = toys.sentence_batch(all_sentences())
    found = evaluated(toy, [batch], text=True)
    expected = -toy.likelihood(np.zeros((1, 1)), batch).mean()
    assert found.iw_nll == found.reconstruction == -found.elbo == pytest.approx(expected)
    assert found.kl == 0.0
    assert found.mi is found.mi_ceiling is found.active_units is found.kl_aggregate is None
    assert found.perplexity_bound == "exact likelihood"
    assert found.notes["mi"] == "there is no latent"
    assert "exact" in found.verdict


def test_points_have_no_bound(toys):
    toy = toys.BigramToy()
    batches = [toys.sentence_batch(all_sentences())]
    found, plain = (evaluated(toy, batches, text=True, charge=charge) for charge in ("penalty", "kl"))
    assert found.elbo is found.iw_nll is found.perplexity is found.perplexity_elbo is found.perplexity_bound is None
    assert found.notes["elbo"] == found.notes["iw_nll"] == "q is points: no bound"
    assert (found.reconstruction, found.kl) == (plain.reconstruction, plain.kl)
    assert found.sites["z"].kl_from == "penalty"
    assert sum(line.endswith("–  q is points: no bound") for line in repr(found).splitlines()) == 4
    assert "words with end marks" in found.title
    assert "points" in found.verdict
    json.dumps(found.to_dict(), allow_nan=False)
    assert validate_program(toy, None, batches, seed=1, charge="penalty")["elbo"] is None


def test_a_bound_on_the_kl_is_called_one_and_the_reconstruction_names_its_sites(toys):
    toy = toys.LinearGaussian()
    found = evaluated(toy, array_batches(toy.data(20), 20), charge="bound")
    assert found.elbo == pytest.approx(-found.reconstruction - found.kl)
    assert "(z bound)" in repr(found)
    assert "−E log p(x | z)" in repr(found)


@pytest.mark.parametrize(
    ("value", "written"),
    [(None, "–"), (1234, "1,234"), (12.3456, "12.346"), (-2.5e9, "-2.500e+09"), (1e13, "1.000e+13")],
)
def test_numbers_as_people_write_them(value, written):
    assert number(value) == written


def test_everything_is_json_and_readable(toys):
    toy = toys.BigramToy()
    for found in (
        evaluated(toy, [toys.sentence_batch(all_sentences())], text=True),
        evaluated(toys.BigramToy(latent=False), [toys.sentence_batch(all_sentences())], text=True),
    ):
        plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert set(plain) >= KEYS
        assert "perplexity" in repr(found)
        assert "<table>" in found._repr_html_()


class TwoSites:
    """A second latent whose posterior hangs on the first one's draw, or is of another family."""

    def __init__(self, toy, family=None):
        self.toy, self.family = toy, family

    def __getattr__(self, name):
        return getattr(self.toy, name)

    def terms(self, state, batch, *, seed, particles=1, drawn=False):
        terms = self.toy.terms(state, batch, seed=seed, particles=particles)
        second = (
            {**terms.log_prior, "w": terms.log_prior["z"]},
            {**terms.log_posterior, "w": terms.log_prior["z"] + 0.25},
        )
        return Terms(terms.log_likelihood, *second, terms.kl, terms.weight)

    def posterior(self, state, batch):
        found = self.toy.posterior(state, batch)
        if self.family:
            found["w"] = Posterior(self.family, found["z"].loc, found["z"].scale)
        return found


@pytest.mark.parametrize(("family", "reason"), [(None, "hangs on other draws"), ("Gamma", "of the kind gamma")])
def test_sampled_kls_and_missing_information_are_said(toys, family, reason):
    toy = toys.LinearGaussian()
    found = evaluated(TwoSites(toy, family), array_batches(toy.data(40), 20))
    assert found.sites["w"].kl_from == "sampled"
    assert found.sites["w"].kl == pytest.approx(0.25)
    assert found.kl == pytest.approx(found.sites["z"].kl + 0.25)
    assert found.kl_per_dimension is None
    assert found.mi is found.kl_aggregate is None
    assert reason in found.notes["mi"]
    assert (found.active_units is None) == (family is None)


@pytest.mark.parametrize(
    ("shift", "stretch", "informed", "word"),
    [(0.0, 1.0, True, "is used"), (1.0, 1.0, False, "next to nothing"), (0.0, 1.0, False, "collapsed")],
)
def test_the_verdict(toys, shift, stretch, informed, word):
    class Guided(toys.LinearGaussian):
        def guide(self, batch):
            loc, scale = super().guide(batch)
            jitter = (0.0 if word == "collapsed" else 0.11) * np.sign(batch["x"][:, :2])
            return (loc, scale) if informed else (shift + jitter, np.ones_like(scale))

    toy = Guided()
    found = evaluated(toy, array_batches(toy.data(2_000), 100), particles=2)
    assert word in found.verdict


def test_validation_is_the_cheap_part(toys):
    toy = toys.BigramToy()
    found = validate_program(toy, None, [toys.sentence_batch(all_sentences())], seed=1)
    assert found["rows"] == 40
    assert found["elbo"] == pytest.approx(-found["reconstruction"] - found["kl"])
    assert found["kl/z"] == found["kl"] == pytest.approx(sum(found["kl_per_dimension"]))
    assert found["active_units"] == 1
    json.dumps(found, allow_nan=False)


def test_the_first_rows_are_repacked_into_the_same_shapes(toys):
    sentences = all_sentences()
    order = np.random.default_rng(0).permutation(len(sentences))
    batches = []
    for width, chosen in (
        (3, [n for n in order if len(sentences[n]) < 3]),
        (4, [n for n in order if len(sentences[n]) == 3]),
    ):
        for start in range(0, len(chosen), 8):
            part = chosen[start : start + 8]
            batch = toys.sentence_batch([sentences[n] for n in part], width=width, filler=8 - len(part))
            batch["index"] = np.array([*part, *[part[0]] * (8 - len(part))])
            batches.append(batch)
    packed = first(batches, 20)
    shapes = {batch["tokens"].shape for batch in batches}
    assert {batch["tokens"].shape for batch in packed} <= shapes
    assert len(packed) < len(batches)
    found = account(toys.BigramToy(), None, packed, seed=0)
    assert sorted(found.rows) == list(range(20))
    assert found.tokens == sum(len(words) + 1 for words in sentences[:20])


def test_seeds(toys):
    toy = toys.LinearGaussian(shift=0.2)
    one, again, other = (evaluated(toy, array_batches(toy.data(30), 10), seed=s).iw_nll for s in (0, 0, 1))
    assert one == again != other
