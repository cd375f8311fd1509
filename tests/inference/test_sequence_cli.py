"""`guidebook sample`, `forecast`, `evaluate`, `diagnose` and `compare` on runs of sequences."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.io import wavfile

from guidebook.data import read_roll
from guidebook.inference import fit
from guidebook.inference.sequence_files import write_midi

SMALL = (
    "model.prior.dim=2",
    "model.prior.hidden=[4]",
    "model.cell={kind = 'gru', hidden = 5}",
    "fit={max_steps = 2, batch_size = 2}",
    "data.buckets=1",
)


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    """A run of a VRNN on ten short tunes in a folder of MIDI files, a chord a step."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    for number in range(10):
        roll = np.zeros((6 + number % 3, 88))
        roll[np.arange(len(roll)), 36 + rng.integers(0, 12, len(roll))] = 1
        roll[:, 48] = 1
        write_midi(roll, folder / f"{number}.mid")
    return _fitted(folder, "bernoulli", tmp_path_factory)


def _fitted(source, likelihood, tmp_path_factory):
    from guidebook.guides import PAIRS

    out = tmp_path_factory.mktemp("runs") / "run"
    settings = (*SMALL, f"data.file={json.dumps(str(source))}", f"model.likelihood.kind={likelihood}", "data.frame=50")
    fit(PAIRS["vrnn"], *settings, engine="pyro", out=out, progress=False)
    return out


def one_object(result):
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_samples_of_music_are_midi_and_a_picture(cli, music, tmp_path):
    arguments = ("sample", music, "--number", "2", "--steps", "7", "--out", tmp_path)
    found = one_object(cli(*arguments, "--json"))
    assert (found["samples"], found["steps"], found["pair"]) == (2, 7, "vrnn")
    assert [path.split("/")[-1] for path in found["files"]] == ["sample-0.mid", "sample-1.mid", "sample.png"]
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "sample-0.mid").read_bytes().startswith(b"MThd")
    plain = cli(*arguments)
    assert "2 sequences of 7 steps" in plain.out
    assert str(tmp_path / "sample-1.mid") in plain.out
    assert one_object(cli("sample", music, "-n", "1", "--json"))["steps"] == 7  # the median of 6, 7 and 8
    assert (music / "samples" / "sample.png").is_file()


def test_a_forecast_says_shows_and_plays(cli, music, tmp_path):
    arguments = ("forecast", music, "--row", "0", "--given", "3", "--steps", "2", "--particles", "5", "--out", tmp_path)
    found = one_object(cli(*arguments, "--json"))
    assert (found["given"], found["steps"], found["particles"]) == (3, [3, 4], 5)
    assert np.shape(found["mean"]) == np.shape(found["truth"]) == (2, 88)
    assert 0 <= np.min(found["mean"]) <= np.max(found["mean"]) <= 1
    assert "2 steps after 3 that were observed" in cli(*arguments).out
    assert (tmp_path / "test-0.png").is_file()
    given = read_roll(tmp_path / "test-0-0.mid", 2)
    assert given[:3, 48].tolist() == [1, 1, 1]


def test_samples_of_sound_and_of_arrays(cli, tmp_path_factory, tmp_path):
    folder, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for number in range(10):
        wavfile.write(folder / f"{number}.wav", 8000, (9000 * rng.normal(size=300)).astype(np.int16))
    run = _fitted(folder, "gaussian", tmp_path_factory)
    found = one_object(cli("sample", run, "-n", "2", "--steps", "4", "--out", tmp_path / "a", "--json"))
    assert [path.split("/")[-1] for path in found["files"]] == ["sample-0.wav", "sample-1.wav", "sample.png"]
    rate, wave = wavfile.read(tmp_path / "a" / "sample-0.wav")
    assert (rate, wave.shape) == (8000, (200,))
    found = one_object(cli("forecast", run, "--particles", "4", "--out", tmp_path / "b", "--json"))
    assert np.shape(found["low"]) == np.shape(found["high"]) == (3, 50)
    assert (np.array(found["low"]) <= found["high"]).all()

    np.savez(tmp_path / "a.npz", x=rng.normal(size=(60, 2)), x_lengths=np.full(10, 6))
    run = _fitted(tmp_path / "a.npz", "gaussian", tmp_path_factory)
    found = one_object(cli("sample", run, "-n", "3", "--steps", "4", "--out", tmp_path / "c", "--json"))
    with np.load(tmp_path / "c" / "sample.npz") as arrays:
        assert arrays["x"].shape == (12, 2)
        assert arrays["x_lengths"].tolist() == [4, 4, 4]
    found = one_object(cli("forecast", run, "--particles", "4", "--out", tmp_path / "d", "--json"))
    assert {path.split("/")[-1] for path in found["files"]} == {"test-0.npz", "test-0.png"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sample", "RUN", "--steps", "0"), "greater than or equal to 1"),
        (("sample", "RUN", "--strategy", "beam"), "choose words"),
        (
            ("sample", "RUN", "-n", "1", "--steps", "10000000000"),
            "GB are free: fewer or shorter sequences would be right",
        ),
        (("forecast", "RUN", "--given", "100"), "and 100 were to be given: 1 to"),
        (("forecast", "RUN", "--row", "10"), "no row 10: 0 to 0"),
        (("forecast", "RUN", "--steps", "10000000000"), "fewer or shorter sequences"),
        (("forecast", "RUN", "--particles", "10000000000"), "at most"),
        (("evaluate", "RUN", "--particles", "10000000000"), "at most"),
        (("reconstruct", "RUN"), "reconstruct sends sentences through the latent and back"),
        (("interpolate", "RUN"), "interpolate walks from one sentence to another"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_makes_no_sense_is_one_sentence(cli, music, arguments, says):
    result = cli(*[music if argument == "RUN" else argument for argument in arguments])
    assert result.status == 2
    assert says in result.err
    assert result.err.count("\n") == 1


def test_sentences_have_no_steps(cli, tiny, tmp_path):
    fit(tiny, "fit.max_steps=1", out=tmp_path / "run", progress=False)
    result = cli("sample", tmp_path / "run", "--steps", "3")
    assert (result.status, "--max-words is for sentences" in result.err) == (2, True)
    result = cli("forecast", tmp_path / "run")
    assert (result.status, "forecast needs a pair of sequences" in result.err) == (2, True)
