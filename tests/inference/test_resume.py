"""A run that was stopped, by a signal or by a kill, ends as if it had not been: bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from guidebook.inference import checkpoint, files, fit, load
from guidebook.inference import progress as display
from guidebook.inference.files import read_arrays
from guidebook.models.errors import BadInput, FailedRun, Interrupted


def whole_run(tiny, engine, out, *settings):
    return fit(tiny, *settings, engine=engine, out=out, progress=False)


def stopped_run(tiny, engine, out, at, *settings, resume=False, signals=(signal.SIGINT,)):
    """A fit that gets `signals` while it works on step `at`."""

    def step(self, number):
        if number == at:
            for one in signals:
                signal.raise_signal(one)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display.Display, "step", step)
        return fit(tiny, *settings, engine=engine, out=out, resume=resume, progress=False)


def assert_same_run(one, other):
    """The same weights and state to the last bit, and the same lines but for the seconds."""
    for name in ("weights.safetensors", "state.safetensors"):
        (a, about), (b, beside) = (read_arrays(folder / name) for folder in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)
        assert {**about, "seconds": 0} == {**beside, "seconds": 0}
    assert lines(one) == lines(other)


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{**line, "seconds": 0, "compilations": 0} for line in found]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run of 3 epochs per engine."""
    folders = {}

    def folder(engine):
        if engine not in folders:
            folders[engine] = tmp_path_factory.mktemp("whole") / engine
            whole_run(tiny, engine, folders[engine], "fit.epochs=3")
        return folders[engine]

    return folder


def test_interrupted_mid_anneal_and_resumed_is_as_never_interrupted(tiny, whole, tmp_path, engine):
    """Stopped twice on the way up of β, between two log lines and within an epoch."""
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"interrupted at step 4; go on with --resume"):
        stopped_run(tiny, engine, out, 3, "fit.epochs=3")
    assert read_arrays(out / "state.safetensors")[1]["step"] == 4
    with pytest.raises(Interrupted):
        stopped_run(tiny, engine, out, 9, "fit.epochs=3", resume=True, signals=[signal.SIGTERM])
    run = fit(tiny, "fit.epochs=3", engine=engine, out=out, resume=True, progress=False)
    assert_same_run(out, whole(engine))
    assert run.history("train")["weight"].is_monotonic_increasing


def test_more_epochs_later_are_as_more_epochs_at_once(tiny, whole, tmp_path, engine):
    """Adam's moments, β and the choice of the best weights all go on."""
    out = tmp_path / "run"
    whole_run(tiny, engine, out, "fit.epochs=2")
    fit(tiny, "fit.epochs=3", engine=engine, out=out, resume=True, progress=False)
    assert_same_run(out, whole(engine))


@pytest.mark.parametrize(
    "settings",
    [
        ["fit.accumulate=2", "fit.guide_optimiser={kind='sgd', learning_rate=0.1, momentum=0.9}"],
        ["fit.plateau={patience=1, first_epoch=1, decays=3}", "divergence.free_bits={nats=1.0}"],
        ["fit.aggressive={inner_steps=4, check_every=2}", "fit.accumulate=2"],
    ],
    ids=["accumulation and momentum", "plateau", "aggressive"],
)
def test_what_hangs_on_the_past_goes_on(tiny, tmp_path, monkeypatch, settings):
    module = sys.modules["guidebook.inference.fit"]
    validate = module.validate_program
    monkeypatch.setattr(module, "validate_program", lambda *arguments: validate(*arguments) | {"objective": 1.0})
    settings = [*settings, "fit.epochs=6", "data.buckets=1"]
    whole_run(tiny, "pyro", tmp_path / "whole", *settings)
    with pytest.raises(Interrupted):
        stopped_run(tiny, "pyro", tmp_path / "run", 11, *settings)
    fit(tiny, *settings, out=tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_inner_steps_go_on_where_they_stood(tiny, tmp_path, engine):
    """Their batches and noise, and the mutual information they are switched off by."""
    settings = ["fit.aggressive={inner_steps=4, check_every=2}", "fit.epochs=3", "data.buckets=1"]
    whole_run(tiny, engine, tmp_path / "whole", *settings)
    with pytest.raises(Interrupted):
        stopped_run(tiny, engine, tmp_path / "run", 7, *settings)
    fit(tiny, *settings, engine=engine, out=tmp_path / "run", resume=True, progress=False)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


KILLED = """
import os, random, sys, threading, time
recipe, engine, out, seed = sys.argv[1:]
from guidebook.inference import fit, progress
from guidebook import engines
engines.load(engine)

def child(fuse):
    '''Fits until a timer, started with the first step, kills this process in the middle of whatever it does.'''
    begun = []
    def step(self, number):
        if not begun:
            begun.append(threading.Thread(target=lambda: (time.sleep(fuse), os.kill(os.getpid(), 9)), daemon=True))
            begun[0].start()
    progress.Display.step = step
    fit(recipe, "fit.epochs=3", "fit.checkpoint_seconds=1e-9", engine=engine, out=out, resume=True, progress=False)
    os._exit(0)

random.seed(int(seed))
killed = 0
for attempt in range(7):
    number = os.fork()
    if number == 0:
        child(random.uniform(0.0, 0.04) if attempt < 6 else 600.0)
    status = os.waitpid(number, 0)[1]
    if status == 0:
        break
    assert status == 9, status
    killed += 1
print(killed)
"""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_is_as_never_killed(tiny, tmp_path, engine):
    """SIGKILL, again and again, in a process of its own that checkpoints at every step."""
    out = tmp_path / "run"
    settings = ["fit.epochs=3", "fit.checkpoint_seconds=1e-9"]
    seed = int.from_bytes(os.urandom(4), "little")
    arguments = [sys.executable, "-W", "ignore", "-c", KILLED, str(tiny), engine, str(out), str(seed)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    assert int(done.stdout) >= 1, done.stderr[-2000:]
    whole_run(tiny, engine, tmp_path / "whole", *settings)
    assert_same_run(out, tmp_path / "whole")


def test_killed_while_a_checkpoint_is_written_the_old_one_stays(tiny, whole, tmp_path):
    out, writes = tmp_path / "run", []
    replace = os.replace

    def killed(source, target):
        writes.append(target)
        if str(target).endswith("state.safetensors") and len(writes) > 7:
            raise SystemExit
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        with pytest.raises(SystemExit):
            whole_run(tiny, "pyro", out, "fit.epochs=3")
    assert (out / ".state.safetensors.partial").exists()
    assert read_arrays(out / "state.safetensors")[1]["step"] > 0
    fit(tiny, "fit.epochs=3", out=out, resume=True, progress=False)
    assert_same_run(out, whole("pyro"))
    assert not list(out.glob(".*"))


@pytest.mark.parametrize(
    "name", ["tokeniser.json", "metrics.jsonl", "weights.safetensors", "state.safetensors", "recipe.toml"]
)
def test_killed_while_a_run_begins_it_begins_again(tiny, whole, tmp_path, name):
    """No file of a beginning is in the way of the next one."""
    out, replace = tmp_path / "run", os.replace

    def killed(source, target):
        if str(target).endswith(name):
            raise SystemExit
        replace(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        with pytest.raises(SystemExit):
            whole_run(tiny, "pyro", out, "fit.epochs=3")
    whole_run(tiny, "pyro", out, "fit.epochs=3")
    assert_same_run(out, whole("pyro"))


def test_a_full_disk_leaves_the_checkpoint_before(tiny, whole, tmp_path):
    out, count = tmp_path / "run", []

    def full(path, content):
        count.append(path)
        if len(count) > 8:
            raise FailedRun(f"{path} could not be saved: No space left on device")
        write(path, content)

    write = files.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", full)
        with pytest.raises(FailedRun, match="No space left"):
            whole_run(tiny, "pyro", out, "fit.epochs=3", "fit.checkpoint_seconds=1e-9")
    fit(tiny, "fit.epochs=3", "fit.checkpoint_seconds=1e-9", out=out, resume=True, progress=False)
    assert load(out).history("valid").index[-1] == load(whole("pyro")).history("valid").index[-1]


@pytest.fixture
def finished(tiny, tmp_path):
    return whole_run(tiny, "pyro", tmp_path / "run", "fit.epochs=1").folder


def test_resuming_a_finished_run_does_nothing(tiny, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    run = fit(tiny, "fit.epochs=1", out=finished, resume=True, progress=False)
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before
    assert len(run.history("valid")) == 1


def test_resume_where_there_is_no_run_just_starts(tiny, tmp_path):
    run = fit(tiny, "fit.max_steps=1", out=tmp_path / "new", resume=True, progress=False)
    assert list(run.history("train").index) == [1]


def test_without_resume_a_run_is_never_overwritten(tiny, finished):
    with pytest.raises(BadInput, match="already holds a run: go on with --resume, or choose another --out"):
        fit(tiny, out=finished, progress=False)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("fit.seed=3", "fit.seed is 0 in .* and 3 now"),
        ("model.decoder.hidden=9", "model.decoder.hidden is 8 in .* and 9 now"),
        ("divergence.free_bits={nats=2.0}", "divergence.free_bits.nats is not set in .* and 2.0 now"),
        ("fit.optimiser.learning_rate=0.01", "fit.optimiser.learning_rate is 0.05 in"),
        ("engine=numpyro", "engine is 'pyro' in .* and 'numpyro' now"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(tiny, finished, setting, said):
    before = (finished / "recipe.toml").read_bytes()
    with pytest.raises(BadInput, match=f"{said}.*only fit.epochs and fit.max_steps may change"):
        fit(tiny, setting, out=finished, resume=True, progress=False)
    assert (finished / "recipe.toml").read_bytes() == before


def test_fewer_steps_than_done_are_refused(tiny, tmp_path):
    with pytest.raises(Interrupted):
        stopped_run(tiny, "pyro", tmp_path / "run", 3)
    with pytest.raises(BadInput, match="is at step 4 already"):
        fit(tiny, "fit.max_steps=4", out=tmp_path / "run", resume=True, progress=False)


def test_a_run_goes_on_with_its_own_data_only(tiny, tmp_path):
    text = tmp_path / "train.txt"
    text.write_text((tiny.parent / "train.txt").read_text())
    settings = [f"data.corpus={text}", "fit.max_steps=2"]
    fit(tiny, *settings, out=tmp_path / "run", progress=False)
    with text.open("a") as file:
        file.write("a b c\n")
    with pytest.raises(BadInput, match="the data have changed"):
        fit(tiny, *settings[:1], "fit.max_steps=4", out=tmp_path / "run", resume=True, progress=False)


def test_resume_puts_a_lost_tokeniser_back(tiny, finished):
    before = (finished / "tokeniser.json").read_bytes()
    (finished / "tokeniser.json").unlink()
    with pytest.raises(BadInput, match=r"tokeniser.json is missing \(fit --resume puts it back\)"):
        load(finished)
    fit(tiny, "fit.epochs=1", out=finished, resume=True, progress=False)
    assert (finished / "tokeniser.json").read_bytes() == before


@pytest.mark.parametrize("name", ["weights.safetensors", "state.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_resume_from_a_damaged_run_says_what_is_wrong(tiny, finished, name, damage):
    path = finished / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match=f"{name}.*{damage}"):
        fit(tiny, "fit.epochs=2", out=finished, resume=True, progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("weight/decoder.output"), "weights lack 'decoder.output'"),
        (lambda a: a.update({"weight/decoder.output": np.zeros(3, np.float32)}), r"weights, 'decoder.output' has shape \(3,\)"),
        (lambda a: a.update({"weight/more": np.zeros(3)}), "weights hold 'more'"),
        (lambda a: a.pop(next(k for k in a if "exp_avg_sq" in k or ".nu" in k)), "optimiser's slots lack"),
        (lambda a: a.update({next(k for k in a if "exp_avg/" in k or ".mu" in k): np.zeros(3, np.float32)}), "optimiser's slots, .* has shape"),
        (lambda a: a.update({"slot/more": np.zeros(3)}), "optimiser's slots hold 'more'"),
    ],
    ids=["weight missing", "weight misshapen", "weight unknown", "slot missing", "slot misshapen", "slot unknown"],
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tiny, tmp_path, engine, change, said):
    out = tmp_path / "run"
    whole_run(tiny, engine, out, "fit.max_steps=1")
    arrays, about = read_arrays(out / "state.safetensors")
    change(arrays)
    files.write_arrays(out / "state.safetensors", arrays, about)
    with pytest.raises(BadInput, match=said):
        fit(tiny, "fit.max_steps=2", engine=engine, out=out, resume=True, progress=False)


WILD = "fit.optimiser={kind='sgd', learning_rate=0.1, clip=inf, schedule={kind='linear', start=1.0, stop=1e30, wait=8, steps=1}}"


def test_a_value_that_is_not_finite_ends_the_run_and_the_last_good_checkpoint_stays(tiny, tmp_path, engine):
    """From step 9 on the learning rate is 1e29: the next step is at weights of that size."""
    out = tmp_path / "run"
    with pytest.raises(FailedRun) as error:
        whole_run(tiny, engine, out, WILD, "fit.epochs=9", "divergence.weight=1.0")
    message = str(error.value)
    assert any(
        f"step {step}: the {what}" in message
        for step in (9, 10, 11)
        for what in ("KL of site 'z'", "log likelihood of site 'x'")
    )
    assert "is not finite; the checkpoint of step" in message
    step = read_arrays(out / "state.safetensors")[1]["step"]
    assert 6 <= step <= 9
    assert f"the checkpoint of step {step} is kept in {out}" in message
    for array in (load(out).weights | read_arrays(out / "state.safetensors")[0]).values():
        assert np.isfinite(array).all()
    assert load(out).history("valid").index[-1] == step


def test_the_site_at_fault_is_the_one_upstream(tiny, tmp_path):
    """Where z and x are both broken it is z: x follows."""
    blame = fit.__globals__["Fitting"]._blame

    class Run:
        folder = tmp_path

    said = blame(Run(), 7, ["objective", "log_likelihood/x", "kl/z", "gradient_norm"])
    assert said.startswith("step 7: the KL of site 'z' is not finite; no checkpoint was written yet")
    assert "the log likelihood of site 'x'" in blame(Run(), 7, ["objective", "log_likelihood/x"])
    assert "the gradient norm is not finite" in blame(Run(), 7, ["gradient_norm"])
    many = [f"gradient_norm/{name}" for name in "abcde"]
    assert "the gradient of 'a', 'b', 'c' and 2 more is not finite" in blame(Run(), 7, ["gradient_norm", *many])


def test_a_position_is_plain_json():
    position = checkpoint.Position(window={"rows": 3.0})
    assert checkpoint.Position(**json.loads(json.dumps(position.__dict__))) == position
