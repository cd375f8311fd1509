"""Recipes whose encoder and decoder are Transformers."""

from __future__ import annotations

import pytest

from guidebook.inference import fit, load, reconstruct, sample

SMALL = "kind='transformer', hidden=16, layers=1, heads=2"


@pytest.mark.slow
def test_a_recipe_with_transformers_learns_draws_and_is_loaded(tiny, engine, tmp_path):
    chosen = (f"model.decoder={{{SMALL}}}", f"guide.encoder={{{SMALL}}}", "fit.optimiser.learning_rate=1e-2")
    run = fit(tiny, *chosen, "fit.max_steps=40", engine=engine, out=tmp_path / "run", progress=False)
    losses = run.history("valid")["objective"]
    assert losses.iloc[-1] < losses.iloc[0]
    again = load(tmp_path / "run")
    assert len(sample(again, 3).sentences) == 3
    assert len(reconstruct(again, count=2).sentences) == 2
