"""Programs in plain NumPy whose answers are known: what is engine-free is tested without an engine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from guidebook.engines.protocol import Posterior
from guidebook.engines.terms import Terms

LOG_2PI = np.log(2 * np.pi)


def normal(x, loc, scale):
    return (-0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * LOG_2PI).sum(-1)


def gaussian_kl(loc, scale):
    return 0.5 * (loc**2 + scale**2 - 2 * np.log(scale) - 1)


class NormalToy:
    """p(z) = N(0, I_D), q(z | x) = N(loc, scale) from `guide`, log p(x | z) from `likelihood`."""

    compilations = 0
    dimensions = 1

    shared = ()

    def guide(self, batch):
        raise NotImplementedError

    def likelihood(self, z, batch):
        raise NotImplementedError

    def draw(self, batch, seed, particles):
        loc, scale = self.guide(batch)
        return loc + scale * np.random.default_rng(seed).standard_normal((particles, *loc.shape))

    def terms(self, state, batch, *, seed, particles=1, drawn=False):
        loc, scale = self.guide(batch)
        z = self.draw(batch, seed, particles)
        return Terms(
            {"x": self.likelihood(z, batch)},
            {"z": normal(z, 0.0, 1.0)},
            {"z": normal(z, loc, scale)},
            {"z": gaussian_kl(loc, scale)},
            np.asarray(batch["weight"], np.float64),
        )

    def log_weights(self, state, batch, *, seed, particles, rows):
        return self.terms(state, batch, seed=seed, particles=particles).log_weight()

    def posterior(self, state, batch):
        return {"z": Posterior("normal", *self.guide(batch))}

    def draws(self, state, batch, *, seed, particles):
        return {"z": self.draw(batch, seed, particles)}

    def prior_draws(self, state, *, seed, rows):
        return np.random.default_rng(seed).standard_normal((rows, self.dimensions))


class LinearGaussian(NormalToy):
    """x = A z + noise of standard deviation s; the guide is the exact posterior mean shifted by `shift`, its
    scales `stretch` times the exact ones. AᵀA is diagonal, so that the exact posterior factorises."""

    def __init__(self, dimensions=2, observed=4, noise=0.7, shift=0.0, stretch=1.0, seed=0):
        rng = np.random.default_rng(seed)
        orthonormal = np.linalg.qr(rng.normal(size=(observed, dimensions)))[0]
        self.dimensions, self.noise, self.shift, self.stretch = dimensions, noise, shift, stretch
        self.loading = orthonormal * rng.uniform(0.8, 2.0, dimensions)

    def guide(self, batch):
        precision = 1.0 + (self.loading**2).sum(0) / self.noise**2
        loc = batch["x"] @ self.loading / self.noise**2 / precision
        return loc + self.shift, self.stretch * np.broadcast_to(precision**-0.5, loc.shape)

    def likelihood(self, z, batch):
        return normal(batch["x"], z @ self.loading.T, self.noise)

    def evidence(self, x):
        covariance = self.loading @ self.loading.T + self.noise**2 * np.eye(x.shape[-1])
        mahalanobis = np.einsum("nd,de,ne->n", x, np.linalg.inv(covariance), x)
        return -0.5 * (mahalanobis + np.linalg.slogdet(covariance)[1] + x.shape[-1] * LOG_2PI)

    def data(self, rows, seed=1):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((rows, self.dimensions))
        return z @ self.loading.T + self.noise * rng.standard_normal((rows, len(self.loading)))


class BigramToy(NormalToy):
    """Sentences from a bigram with a latent of one dimension: logits_t = W[x_{t-1}] + z u[x_{t-1}]."""

    def __init__(self, vocabulary=7, seed=0, strength=0.8, latent=True):
        rng = np.random.default_rng(seed)
        self.table = rng.normal(size=(vocabulary, vocabulary))
        self.tilt = strength * rng.normal(size=(vocabulary, vocabulary))
        self.latent, self.steps = latent, 0

    def logits(self, previous, z):
        """previous (…,) and z (…, 1), broadcast: (…, V)."""
        return self.table[previous] + (z * self.tilt[previous] if self.latent else 0.0)

    def likelihood(self, z, batch):
        logits = self.logits(batch["inputs"], z[..., None, :])
        logits = logits - logits.max(-1, keepdims=True)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets = np.broadcast_to(batch["targets"], log_probs.shape[:-1])[..., None]
        kept = np.arange(batch["targets"].shape[-1]) < batch["lengths"][:, None]
        return np.where(kept, np.take_along_axis(log_probs, targets, -1)[..., 0], 0.0).sum(-1)

    def guide(self, batch):
        loc = 0.3 * (batch["lengths"] - 3.0)[:, None] + 0.1 * (batch["tokens"][:, 1:2] - 4.0)
        return loc, np.full(loc.shape, 0.6)

    def terms(self, state, batch, *, seed, particles=1, drawn=False):
        if self.latent:
            return super().terms(state, batch, seed=seed, particles=particles)
        likelihood = np.broadcast_to(self.likelihood(np.zeros((1, 1)), batch), (particles, len(batch["weight"])))
        return Terms({"x": likelihood}, {}, {}, {}, np.asarray(batch["weight"], np.float64))

    def decode_start(self, state, latent, rows, steps):
        return np.zeros((rows, 1)) if latent is None else np.asarray(latent, np.float64)

    def decode_step(self, state, cache, tokens):
        self.steps += 1
        assert len(cache) == len(tokens)
        return cache, self.logits(tokens, cache)

    def decode_reorder(self, cache, index):
        return cache[index]


def sentence_batch(sentences, width=None, filler=0):
    """Batch of id lists (words only), padded, with `filler` rows of weight zero that copy the first."""
    rows = [*sentences, *[sentences[0]] * filler]
    lengths = np.array([len(row) + 1 for row in rows], np.int32)
    width = width or int(lengths.max())
    tokens = np.zeros((len(rows), width + 1), np.int32)
    for n, row in enumerate(rows):
        tokens[n, : len(row) + 2] = [1, *row, 2]
    weight = np.array([1.0] * len(sentences) + [0.0] * filler, np.float32)
    index = np.array([*range(len(sentences)), *[0] * filler], np.int32)
    return {
        "tokens": tokens,
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "lengths": lengths,
        "weight": weight,
        "index": index,
    }


@pytest.fixture(scope="session")
def toys():
    return SimpleNamespace(
        LinearGaussian=LinearGaussian,
        BigramToy=BigramToy,
        NormalToy=NormalToy,
        sentence_batch=sentence_batch,
        normal=normal,
        gaussian_kl=gaussian_kl,
    )


RECIPE = """
pair = "sentence_vae"
[model]
prior = {dim = 3}
decoder = {kind = "lstm", embedding = 6, hidden = 8, dropout = 0.2}
[guide]
encoder = {kind = "lstm", embedding = 6, hidden = 8}
[divergence]
weight = {kind = "linear", steps = 12}
[data]
corpus = "FOLDER/train.txt"
valid = "FOLDER/valid.txt"
test = "FOLDER/test.txt"
buckets = 2
[fit]
epochs = 2
batch_size = 8
word_dropout = 0.2
optimiser = {learning_rate = 0.05}
"""
"""A sentence VAE that fits in a second: 40 sentences in two shapes, six steps an epoch."""


def write_sentences(folder):
    """Short and long sentences of a few words, in three files."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("valid", 9), ("test", 7)):
        rows = [rng.choice(list("abcdefg"), size=length) for length in rng.choice([2, 2, 2, 6], size=count)]
        (folder / f"{split}.txt").write_text("".join(f"{' '.join(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The path of a recipe that fits in a second. JAX compiles its few shapes once for all tests and processes."""
    folder = tmp_path_factory.mktemp("tiny")
    write_sentences(folder)
    (folder / "tiny.toml").write_text(RECIPE.replace("FOLDER", folder.as_posix()), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDEBOOK_CACHE", str(folder / "cache"))
        _keep_compiled(patch, folder / "compiled")
        yield folder / "tiny.toml"


def _keep_compiled(patch, folder):
    jax = pytest.importorskip("jax")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        patch.setenv(name.upper(), str(value))
        jax.config.update(name, value)
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()


@pytest.fixture(params=["pyro", "numpyro"])
def engine(request):
    pytest.importorskip({"pyro": "torch", "numpyro": "jax"}[request.param])
    return request.param


@pytest.fixture
def cli(monkeypatch, capsys):
    """`guidebook ARGUMENTS…` in this process: exit status, standard output, standard error."""
    from guidebook.inference.cli import main

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["guidebook", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return SimpleNamespace(status=stop.value.code, out=out, err=err)

    return run
