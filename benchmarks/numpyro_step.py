"""One training step of the sentence VAE on NumPyro against its products, a hand-written loop and stock NumPyro.

    python -m benchmarks.numpyro_step [--repeats 15] [--json]

All variants are interleaved in one process with the same allocator settings, and medians are reported: trust
the ratios, not the milliseconds. Shape: Penn Treebank as Li et al. 2019 (E 256, H 256, Z 32, V 10,000, T 22).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.infer import SVI, TraceMeanField_ELBO

from benchmarks.machine import resident
from benchmarks.measuring import Step, medians, show
from guidebook.engines.memory import keep_freed_memory
from guidebook.engines.numpyro import Program
from guidebook.engines.protocol import Control, Objective, Settings
from guidebook.guides.pairs import PAIRS
from guidebook.guides.sentence_guide import SentenceGuide
from guidebook.models.sentence_vae import SentenceModel

PAIR = PAIRS["sentence_vae"]
Weights = dict[str, Array]


@dataclass(frozen=True)
class Shape:
    """E, H, Z, V, T as the specs' defaults have them for PTB; `rows` is B."""

    rows: int
    vocabulary: int = 10_000
    steps: int = 22
    embedding: int = 256
    hidden: int = 256
    latent: int = 32

    def batch(self) -> dict[str, np.ndarray]:
        """Sentences of equal length, so that no variant gains by skipping pads."""
        rng = np.random.default_rng(0)
        tokens = rng.integers(4, self.vocabulary, (self.rows, self.steps + 1), dtype=np.int32)
        tokens[:, 0], tokens[:, -1] = 1, 2
        return {
            "index": np.arange(self.rows, dtype=np.int32),
            "weight": np.ones(self.rows, np.float32),
            "tokens": tokens,
            "inputs": tokens[:, :-1].copy(),
            "targets": tokens[:, 1:].copy(),
            "lengths": np.full(self.rows, self.steps, np.int32),
        }

    def weights(self) -> Weights:
        """The hand-written network's."""
        v, e, h, z = self.vocabulary, self.embedding, self.hidden, self.latent
        shapes = {
            "encoder_embedding": (v, e),
            "encoder_ih": (e, 4 * h),
            "encoder_hh": (h, 4 * h),
            "encoder_bias": (4 * h,),
            "posterior": (h, 2 * z),
            "embedding": (v, e),
            "initial": (z, h),
            "decoder_ih": (e + z, 4 * h),
            "decoder_hh": (h, 4 * h),
            "decoder_bias": (4 * h,),
            "output": (h, v),
        }
        rng = np.random.default_rng(0)
        return {name: jnp.asarray(rng.uniform(-0.05, 0.05, shape), "float32") for name, shape in shapes.items()}


def lstm(w: Weights, side: str, x: Array, h: Array, c: Array) -> Array:
    """States (T, B, H) of inputs (T, B, ·): a plain scan."""

    def cell(state: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = state
        gates = x @ w[f"{side}_ih"] + h @ w[f"{side}_hh"] + w[f"{side}_bias"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    return jax.lax.scan(cell, (h, c), x)[1]


def encode(w: Weights, tokens: Array) -> tuple[Array, Array]:
    zeros = jnp.zeros((len(tokens), w["encoder_hh"].shape[0]))
    h = lstm(w, "encoder", w["encoder_embedding"][tokens.T], zeros, zeros)[-1]
    loc, log_variance = jnp.split(h @ w["posterior"], 2, axis=-1)
    return loc, log_variance


def decode(w: Weights, z: Array, inputs: Array, key: Array) -> Array:
    """Logits (T, B, V), with dropout of one half on embeddings and states."""
    embedded_key, state_key = jax.random.split(key)
    embedded = dropout(w["embedding"][inputs.T], embedded_key)
    repeated = jnp.broadcast_to(z, (len(embedded), *z.shape))
    c = z @ w["initial"]
    h = lstm(w, "decoder", jnp.concatenate([embedded, repeated], axis=-1), jnp.tanh(c), c)
    return dropout(h, state_key) @ w["output"]


def dropout(x: Array, key: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0)


def hand(shape: Shape) -> Step:
    """A compiled step: scan, log_softmax, take_along_axis, optax.adam, with the state donated."""
    optimiser, batch = optax.adam(1e-3), {k: jnp.asarray(v) for k, v in shape.batch().items()}

    def loss(w: Weights, batch: Weights, key: Array) -> Array:
        noise_key, dropout_key = jax.random.split(key)
        loc, log_variance = encode(w, batch["tokens"])
        z = loc + jnp.exp(0.5 * log_variance) * jax.random.normal(noise_key, loc.shape)
        table = jax.nn.log_softmax(decode(w, z, batch["inputs"], dropout_key))
        words = jnp.take_along_axis(table, batch["targets"].T[..., None], -1).sum()
        kl = 0.5 * (loc**2 + jnp.exp(log_variance) - 1 - log_variance).sum()
        return (kl - words) / shape.rows

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(w: Weights, slots: Any, batch: Weights, key: Array) -> tuple[Any, Any, Array]:
        value, gradients = jax.value_and_grad(loss)(w, batch, key)
        updates, slots = optimiser.update(gradients, slots)
        return optax.apply_updates(w, updates), slots, value

    weights = shape.weights()
    held, keys = [weights, optimiser.init(weights)], iter(range(10**9))

    def step() -> float:
        *held[:], value = update(*held, batch, jax.random.key(next(keys)))
        return float(value)

    return step


def stock(shape: Shape) -> Step:
    """A plain NumPyro program with a Categorical site, `TraceMeanField_ELBO` and stock SVI."""
    initial, tokens = shape.weights(), jnp.asarray(shape.batch()["tokens"])

    def weights() -> Any:
        return {name: numpyro.param(name, value) for name, value in initial.items()}

    def model(tokens: Array) -> None:
        w = weights()
        with numpyro.plate("sentences", len(tokens)):
            z: Any = numpyro.sample("z", dist.Normal(jnp.zeros((len(tokens), shape.latent)), 1.0).to_event(1))
            key: Any = numpyro.prng_key()
            logits: Any = decode(w, z, tokens[:, :-1], key).swapaxes(0, 1)
            words: Any = dist.Categorical(logits=logits)
            numpyro.sample("x", words.to_event(1), obs=tokens[:, 1:])

    def guide(tokens: Array) -> None:
        loc, log_variance = encode(weights(), tokens)
        with numpyro.plate("sentences", len(tokens)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), TraceMeanField_ELBO())
    held, update = [svi.init(jax.random.key(0), tokens)], jax.jit(svi.update)

    def step() -> float:
        held[0], value = update(held[0], tokens)
        return float(value)

    return step


def program(shape: Shape, precision: str = "float32") -> tuple[Program, Any]:
    """The engine with the pair of the specs, and its state."""
    networks = PAIR.realisable(SentenceModel(), SentenceGuide(), shape.vocabulary)
    objective = Objective(lambda terms, weight: weight * terms.total_kl() - terms.reconstruction())
    engine = Program(PAIR, networks, Settings(data_size=42_068, objective=objective, precision=precision))
    return engine, engine.init(shape.batch())


def ours(shape: Shape, precision: str = "float32") -> Step:
    """The engine's own step."""
    engine, state = program(shape, precision)
    held, batch, count = [state], shape.batch(), iter(range(10**9))
    rates = {"model": 1e-3, "guide": 1e-3}

    def step() -> float:
        held[0], info = engine.step(held[0], [batch], Control(next(count), 1.0, rates))
        return float(info["objective"])

    return step


def floor(shape: Shape) -> Step:
    """The step's matrix products alone, in float32, their results in buffers that are handed back in."""
    b, t, e, h = shape.rows, shape.steps, shape.embedding, shape.hidden
    made = [
        (b * (t + 1), e, 4 * h, 1),
        (b, h, 4 * h, t + 1),
        (b * t, e, 4 * h, 1),
        (b, h, 4 * h, t),
        (b * t, h, shape.vocabulary, 1),
    ]
    operands = [operands_of(*sizes) for sizes in made]

    @partial(jax.jit, donate_argnums=0)
    def run(buffers: Any, operands: Any) -> Any:
        return [forward(*group) + backward(*group) for group in operands]

    held = [jax.tree.map(jnp.zeros_like, run(None, operands))]

    def step() -> None:
        held[0] = jax.block_until_ready(run(held[0], operands))

    return step


def operands_of(rows: int, inputs: int, outputs: int, times: int = 1) -> tuple[Array, Array, Array]:
    """x (times, rows, inputs), w (outputs, inputs) and dy (times, rows, outputs) of one product."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (times, rows, inputs), (outputs, inputs), (times, rows, outputs)
    x, w, dy = (jax.random.normal(key, size) for key, size in zip(keys, shapes, strict=True))
    return x, w, dy


def forward(x: Array, w: Array, _: Any = None) -> tuple[Array, ...]:
    return (jax.lax.map(lambda x: x @ w.T, x) if len(x) > 1 else x[0] @ w.T,)


def backward(x: Array, w: Array, dy: Array) -> tuple[Array, ...]:
    dx = jax.lax.map(lambda dy: dy @ w, dy) if len(dy) > 1 else dy[0] @ w
    return dx, dy.reshape(-1, dy.shape[-1]).T @ x.reshape(-1, x.shape[-1])


def training(rows: int, repeats: int) -> dict[str, Any]:
    """One entry: every variant of a training step at batch `rows`."""
    shape = Shape(rows)
    found = medians(
        {
            "floor": floor(shape),
            "hand": hand(shape),
            "stock": stock(shape),
            "ours": ours(shape),
            "ours_bfloat16": ours(shape, "bfloat16"),
        },
        repeats,
    )
    ratios = {
        "ours/hand": found["ours"] / found["hand"],
        "stock/ours": found["stock"] / found["ours"],
        "ours/floor": found["ours"] / found["floor"],
        "ours_bfloat16/floor": found["ours_bfloat16"] / found["floor"],
    }
    return {"name": f"numpyro_step_batch_{rows}"} | {f"{k}_ms": v for k, v in found.items()} | ratios


def importance(repeats: int, particles: int = 500) -> dict[str, Any]:
    """One entry: IW-NLL of one sentence with 500 particles, and the bias of its bfloat16 variant in nats."""
    shape = Shape(1)
    engines = {precision: program(shape, precision) for precision in ("float32", "bfloat16")}
    batch = shape.batch()

    def bound(precision: str) -> np.ndarray:
        engine, state = engines[precision]
        return engine.log_weights(state, batch, seed=0, particles=particles, rows=particles)

    sizes = (shape.hidden, 4 * shape.hidden, shape.steps), (shape.hidden, shape.vocabulary, shape.steps)
    operands = [operands_of(particles, *size)[:2] for size in sizes]
    products = jax.jit(lambda operands: [forward(*group)[0].max() for group in operands])
    variants: dict[str, Step] = {precision: partial(bound, precision) for precision in engines}
    found = medians({"floor": lambda: jax.block_until_ready(products(operands)), **variants}, repeats)
    weights = {precision: bound(precision) for precision in engines}
    nll = {name: float(np.log(particles) - np.logaddexp.reduce(w[:, 0])) for name, w in weights.items()}
    return {
        "name": "numpyro_iw_nll_500",
        "floor_ms": found["floor"],
        "ours_ms": found["float32"],
        "ours_bfloat16_ms": found["bfloat16"],
        "ours/floor": found["float32"] / found["floor"],
        "ours_bfloat16/floor": found["bfloat16"] / found["floor"],
        "bfloat16_bias_nats": nll["bfloat16"] - nll["float32"],
    }


def peak(variant: str, vocabulary: int) -> float:
    """MiB by which three steps raise the peak of resident memory above parameters and optimiser slots."""
    make = {"hand": hand, "ours": ours}[variant]
    make(Shape(1, vocabulary, steps=2))()
    before = resident("VmHWM")
    step = make(Shape(32, vocabulary))
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def memory(vocabulary: int = 50_000) -> dict[str, Any]:
    """One entry: peak resident memory of training at V = 50,000, B = 32, each variant in a process of its own."""
    found = {}
    for variant in ("hand", "ours"):
        command = [sys.executable, "-m", "benchmarks.numpyro_step", "--peak", variant]
        command += ["--vocabulary", str(vocabulary)]
        found[variant] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "name": f"numpyro_peak_memory_{vocabulary}",
        "ours_mib": found["ours"],
        "hand_mib": found["hand"],
        "ours/hand": found["ours"] / found["hand"],
    }


def measure(repeats: int = 15) -> list[dict[str, Any]]:
    """Everything this script measures: a list of entries with a name, times in milliseconds and ratios."""
    keep_freed_memory()
    return [training(32, repeats), training(64, repeats), importance(max(3, repeats // 3)), memory()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", choices=("hand", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--vocabulary", type=int, default=50_000, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak(options.peak, options.vocabulary))
        return
    show(measure(options.repeats), options.json)


if __name__ == "__main__":
    main()
