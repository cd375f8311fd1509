from __future__ import annotations

import arviz_base
import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm

from guidebook.inference.export import program_to_arviz, write_netcdf

SENTENCES = [[4, 5], [6], [5, 5, 6], [4], [6, 6, 4, 5]]


@pytest.fixture
def tree(toys):
    toy = toys.BigramToy()
    batches = [toys.sentence_batch(SENTENCES[:3], filler=1), toys.sentence_batch(SENTENCES[3:], width=6)]
    batches[0]["index"] = np.array([4, 1, 3, 4])
    batches[1]["index"] = np.array([0, 2])
    found = program_to_arviz(
        toy,
        None,
        batches,
        draws=25,
        plate="sentences",
        sites={"z": ("z_dim",), "x": ("token",)},
        text=True,
        rows=30,
        attributes={"pair": "toy"},
    )
    return toy, found


ORDER = [3, 1, 4, 2, 0]  # SENTENCES by their position


def test_dimensions_are_the_pairs_own(tree):
    _, found = tree
    assert found.posterior["z"].dims == ("sample", "sentences", "z_dim")
    assert found.posterior["z"].shape == (25, 5, 1)
    assert found.log_likelihood["x"].dims == ("sample", "sentences")
    assert found.observed_data["x"].dims == ("sentences", "token")
    assert found.sample_stats["log_weight"].dims == ("sample", "sentences")
    assert found.observed_data["sentences"].values.tolist() == [0, 1, 2, 3, 4]
    assert found.constant_data["length"].values.tolist() == [len(SENTENCES[n]) + 1 for n in ORDER]
    assert found.attrs["inference_library"] == "guidebook"
    assert found.attrs["pair"] == "toy"


def test_sentences_are_in_the_order_of_the_data(tree):
    _, found = tree
    for row, n in enumerate(ORDER):
        tokens = found.observed_data["x"].values[row]
        assert tokens.tolist() == [*SENTENCES[n], 2] + [0] * (6 - len(SENTENCES[n]) - 1)


def test_log_densities_are_those_at_the_draws(toys, tree):
    toy, found = tree
    batch = toys.sentence_batch([SENTENCES[n] for n in ORDER])
    z = found.posterior["z"].values
    likelihood = toy.likelihood(z, batch)
    loc, scale = toy.guide(batch)
    log_q = norm.logpdf(z, loc, scale).sum(-1)
    lp = likelihood + norm.logpdf(z).sum(-1)
    np.testing.assert_allclose(found.log_likelihood["x"], likelihood, rtol=1e-12)
    np.testing.assert_allclose(found.sample_stats["log_q"], log_q, rtol=1e-12)
    np.testing.assert_allclose(found.sample_stats["lp"], lp, rtol=1e-12)
    np.testing.assert_allclose(found.sample_stats["log_weight"], lp - log_q, rtol=1e-10)


def test_draws_are_from_the_guide_and_differ(tree):
    _, found = tree
    z = found.posterior["z"].values[..., 0]
    assert len(np.unique(z)) == z.size
    assert (z.std(0) > 0.3).all()


def test_survives_the_file(tree, tmp_path):
    _, found = tree
    write_netcdf(found, tmp_path / "posterior.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["posterior.nc"]
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as back:
        xr.testing.assert_identical(back.load(), found)
        assert arviz_base.extract(back, sample_dims=["sample"], keep_dataset=True)["z"].sizes["sample"] == 25


def test_arrays_keep_their_own_names(toys):
    toy = toys.LinearGaussian()
    batch = {"x": toy.data(6), "noise": np.ones((6, 2)), "index": np.arange(6), "weight": np.ones(6)}
    found = program_to_arviz(toy, None, [batch], draws=3)
    assert found.posterior["z"].dims == ("sample", "data", "z_dim_0")
    assert found.observed_data["x"].dims == ("data", "x_dim_0")
    assert found.constant_data["noise"].dims == ("data", "noise_dim_0")


def test_a_language_model_has_no_posterior(toys):
    found = program_to_arviz(toys.BigramToy(latent=False), None, [toys.sentence_batch(SENTENCES)], draws=1, text=True)
    assert "posterior" not in found.children
    assert list(found.sample_stats.data_vars) == ["lp"]
    assert found.log_likelihood["x"].shape == (1, 5)


def test_a_write_that_fails_leaves_nothing(tree, tmp_path):
    from guidebook.models.errors import FailedRun

    _, found = tree
    with pytest.raises(FailedRun, match="could not be written"):
        write_netcdf(found, tmp_path / "missing" / "posterior.nc")
