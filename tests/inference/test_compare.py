"""One recipe with several values of one setting: runs, table, picture, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from guidebook.inference import compare, load
from guidebook.inference.compare import _variation
from guidebook.inference.divergences import Divergence
from guidebook.inference.mistakes import models_in
from guidebook.inference.recipe import override, parse
from guidebook.models import BadInput

DOCS = Path(__file__).parents[2] / "docs"
TINY = (
    "model.prior.dim=2",
    'model.decoder={kind = "gru", embedding = 4, hidden = 4}',
    'guide.encoder={kind = "gru", embedding = 4, hidden = 4}',
    "fit.max_steps=2",
    "fit.batch_size=8",
)


@pytest.fixture
def corpus(tmp_path):
    words = ("a", "b", "c", "d")
    lines = [" ".join(words[(i + j) % 4] for j in range(1 + i % 5)) + f" {i}" for i in range(400)]
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(lines))
    return f"data.corpus={json.dumps(str(path))}"


def test_every_run_is_kept_and_judged_alike(corpus, tmp_path):
    found = compare(
        "quickstart",
        'divergence=kl,iwae:3,{kind = "renyi", alpha = 0.5, particles = 2}',
        *TINY,
        corpus,
        out=tmp_path / "runs",
        particles=3,
        progress=False,
    )
    assert list(found.runs) == ["kl", "iwae:3", '{kind = "renyi", alpha = 0.5, particles = 2}']
    divergences = [run.recipe.divergence for run in found.runs.values()]
    assert [(d.kind, d.particles) for d in divergences] == [("kl", 1), ("iwae", 3), ("renyi", 2)]
    assert {load(run.folder).recipe.fit.seed for run in found.runs.values()} == {0}
    assert len(found.rows()) == 3
    assert all(name in repr(found) for name in ("iwae:3", "IW-NLL", "seconds"))
    assert found.picture.read_bytes().startswith(b"\x89PNG")
    table = found.to_dict()["runs"]["iwae:3"]
    assert {"elbo", "iw_nll", "kl", "mi", "active_units", "seconds"} <= set(table)


@pytest.mark.parametrize(
    "values",
    [
        ["kl", "iwae:8"],
        ["{kind = 'kl', weight = {kind = 'linear', steps = 9}}", "iwae:8"],
        ["[1, [2, 3]]", "'a, b'", '"c, {"', "{a = [1, 2], b = {c = 1, d = 2}}"],
    ],
)
def test_values_are_parted_where_they_end(values):
    assert _variation(f"divergence={', '.join(values)}") == ("divergence", values)


def test_any_setting_may_vary(corpus, tmp_path):
    found = compare(
        "quickstart", "model.prior.dim=1,3", *TINY, corpus, out=tmp_path / "runs", particles=2, progress=False
    )
    assert [evaluation.dimensions for evaluation in found.evaluations.values()] == [1, 3]


@pytest.mark.parametrize(
    ("variation", "message"),
    [
        ("divergence", "no variation"),
        ("divergence=kl,,iwae", "no variation"),
        ("divergence=kl,kl", "twice"),
        ("divergence=kl,iwea:8", "did you mean 'iwae'"),
        ("divergence=kl,renyi:1", "its limit is the ELBO"),
        ("divergence=iwae:0", "particles"),
        ("divergence=kl:-1", "weight"),
        ("divergence=f_divergence:total_variation", "no second derivative"),
        ("divergence=cubo:1", "order = 1"),
        ("divergence={kind = 'cubo', weight = 0.5}", "above 0.5 would be right"),
        ("divergence={kind = 'cubo', weight = {kind = 'linear', steps = 9}}", "above 0.5 would be right"),
        ("divergence=info_vae:0.5", "strength = 1 or more"),
        ("model.prior.dimm=1,2", "did you mean 'dim'"),
    ],
)
def test_what_cannot_be_varied_is_refused_before_training(variation, message, tmp_path):
    with pytest.raises(BadInput, match=message):
        compare("quickstart", variation, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("spec", list(models_in(Divergence)), ids=lambda spec: spec.__name__)
def test_every_divergence_says_what_it_is(spec):
    if "kind" not in spec.model_fields:
        return
    assert spec.shorthand in spec.model_fields
    assert spec.bounds in ("below", "above", "nothing")
    kind = spec.model_fields["kind"].default
    more = ["divergence.nats=3.0"] if spec.model_fields.get("nats") else []
    of_sequences = {"pair": "vrnn"} if kind == "fivo" else {"data": {"corpus": "stdlib_docs"}}
    recipe = override(parse(of_sequences), [f"divergence.kind={kind}", *more])
    assert recipe.divergence == spec(**({"nats": 3.0} if more else {}))
    assert kind in (DOCS / "divergences.md").read_text(encoding="utf-8")
