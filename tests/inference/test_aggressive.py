"""Aggressive training: the inner loop by hand, when it stops, when it is over, what it is refused for."""

from __future__ import annotations

import math
import sys
from itertools import count

import numpy as np
import pytest

from guidebook.engines.protocol import Control
from guidebook.engines.seeds import derive
from guidebook.inference import fit
from guidebook.inference.aggressive import Aggressive, InnerLoop
from guidebook.inference.evaluate import evaluate_program, validate_program
from guidebook.inference.files import read_arrays
from guidebook.inference.recipe import parse, read
from guidebook.inference.resolve import resolve
from guidebook.inference.run import dataset_of, program_of
from guidebook.models.errors import BadInput, FailedRun

SHORT = "fit.aggressive={inner_steps=5, check_every=2}"
BOTH = Control(7, 1.0, {"model": 0.1, "guide": 0.1})


class Scripted:
    """A program whose k-th step reports the k-th loss; batches are numbers of words."""

    def __init__(self, losses, words=None):
        self.told, self.words, self.controls = iter(losses), words or [1] * 99, []

    def batch(self, place):
        return {"lengths": np.array([self.words[place], 50]), "weight": np.array([1.0, 0.0])}

    def step(self, state, batches, control):
        self.controls.append(control)
        return state, {"objective": next(self.told)}

    def run(self, taken=0, accumulate=1, **spec):
        loop = InnerLoop(Aggressive(**spec), self, self, accumulate, lambda control, info: info)
        return loop.run(None, BOTH, taken)[1] - taken


@pytest.mark.parametrize(
    ("losses", "words", "steps"),
    [
        ([9, 8, 7, 6, 5, 4, 3], None, 7),
        ([9, 8, 9, 8, 9, 8, 9], None, 7),  # as high as before is no rise
        ([9, 8, 9, 9, 0, 0, 0], None, 4),
        ([9, 8, 1, 1, 1, 2, 0], None, 6),
        ([1, 99, 50, 49, 0, 0, 0], None, 7),  # only means of two are compared
        ([9, 8, 20, 20, 0, 0, 0], [1, 1, 9, 9, 1, 1, 1], 7),  # a larger sum over more words is less a word
        ([9, 8, 8, 8, 0, 0, 0], [5, 5, 1, 1, 1, 1, 1], 4),
    ],
)
def test_inner_steps_end_when_their_mean_loss_a_word_rises(losses, words, steps):
    assert Scripted(losses, words).run(inner_steps=7, check_every=2) == steps


def test_inner_steps_move_the_guide_with_noise_and_batches_of_their_own_stream():
    program = Scripted([1] * 6, words=list(range(20)))
    assert program.run(taken=3, accumulate=2, inner_steps=6, check_every=3) == 6
    assert [control.step for control in program.controls] == [3, 4, 5, 6, 7, 8]
    assert {(control.sides, control.weight) for control in program.controls} == {(("guide",), 1.0)}


def by_hand(tiny, engine, settings, steps):
    """He et al.'s algorithm 1, written out: the weights after some steps of the model, and all inner steps."""
    recipe, pair, _ = resolve(tiny, settings, engine=engine)
    data = dataset_of(recipe, pair)
    batches, fresh = (
        data.batches("train", batch_size=8, seed=seed, shuffle=True, word_keep=0.8) for seed in (0, derive(0, "inner"))
    )
    program = program_of(recipe, pair, data.width, 40)
    state, places = program.init(batches.batch(0)), count()
    for step in range(steps):
        weight, rates = min(step / 12, 1.0), {"model": 0.05, "guide": 0.05}
        before, losses, words = math.inf, 0.0, 0
        for number in range(1, 13):
            place = next(places)
            batch = fresh.batch(place)
            state, info = program.step(state, [batch], Control(place, weight, rates, ("guide",)))
            losses, words = losses + float(info["objective"]), words + batch["lengths"][batch["weight"] > 0].sum()
            if number % 2 == 0:
                if losses / words > before:
                    break
                before, losses, words = losses / words, 0.0, 0
        state, _ = program.step(state, [batches.batch(step)], Control(step, weight, rates, ("model",)))
    return program.weights(state), next(places)


def test_the_loop_is_the_papers(tiny, tmp_path, engine):
    settings = ["fit.aggressive={inner_steps=12, check_every=2}", "fit.select=last", "fit.max_steps=5"]
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    weights, inner = by_hand(tiny, engine, settings, 5)
    assert int(run.history("train")["inner_steps"].sum()) == inner
    assert 5 * 2 <= inner < 5 * 12  # some loops ended early
    for name, weight in weights.items():
        np.testing.assert_array_equal(run.weights[name], weight, err_msg=name)


def test_it_is_over_for_good_when_the_mutual_information_falls(tiny, tmp_path, engine, monkeypatch):
    module, told = sys.modules["guidebook.inference.fit"], iter([-0.01, 0.5, 0.7, 0.6, 0.9, 1.0])
    validate = module.validate_program

    def scripted(*arguments):
        found = validate(*arguments)
        return found | {"mi": next(told)} if hasattr(arguments[2], "shapes") else found

    monkeypatch.setattr(module, "validate_program", scripted)
    run = fit(tiny, SHORT, "fit.epochs=6", engine=engine, out=tmp_path / "run", progress=False)
    inner, valid = run.history("train")["inner_steps"], run.history("valid")
    assert list(inner.notna()) == [True] * 4 + [False] * 2
    assert list(valid["mi"]) == [-0.01, 0.5, 0.7, 0.6, 0.9, 1.0]
    np.testing.assert_array_equal(run.history("train")["tokens"], run.corpus.train.tokens)
    if engine == "numpyro":  # two shapes: guide alone, model alone, then both
        assert list(valid["compilations"]) == [4] * 4 + [6] * 2


def test_the_mutual_information_is_that_of_the_evaluation(tiny, tmp_path):
    run = fit(tiny, SHORT, "fit.max_steps=3", out=tmp_path / "run", progress=False)
    batches = run.batches("valid")
    found = validate_program(run.program, run.state, batches, 3, information=True)
    wanted = evaluate_program(run.program, run.state, batches, particles=1, rows=64, seed=3, text=True)
    assert found["mi"] == wanted.mi


def test_a_guide_that_lags_no_more_is_known_after_a_resumption(tiny, tmp_path):
    run = fit(tiny, SHORT, "fit.epochs=2", out=tmp_path / "run", progress=False)
    about = read_arrays(run.folder / "state.safetensors")[1]
    assert about["information"] == run.history("valid")["mi"].iloc[-1]
    assert about["inner"] == run.history("train")["inner_steps"].sum()


def test_an_inner_loss_that_is_not_finite_ends_the_run():
    loop = Scripted([1.0, math.nan])

    def losses(control, info):
        if not math.isfinite(info["objective"]):
            raise FailedRun(f"step {control.step}")
        return info

    with pytest.raises(FailedRun, match="step 7"):
        InnerLoop(Aggressive(inner_steps=2, check_every=2), loop, loop, 1, losses).run(None, BOTH, 0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["guide.posterior={kind='laplace'}"], r"mutual information .* not known: q\(z \| x\) is of the kind laplace"),
        (
            ["fit.aggressive.check_every=9"],
            "check_every = 9 is never reached in 5 inner steps: at most 5 would be right",
        ),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(tiny, tmp_path, settings, said):
    with pytest.raises(BadInput, match=said):
        fit(tiny, SHORT, *settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_pair_without_a_guide_is_refused(tiny, tmp_path):
    recipe = parse({"pair": "language_model", "data": read(tiny)[0]["data"]})
    with pytest.raises(BadInput, match="the guide's side by itself, and the pair 'language_model' has no parameters"):
        fit(recipe, SHORT, "fit.batch_size=8", out=tmp_path / "run", progress=False)
