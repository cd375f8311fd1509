"""A training step of the sentence VAE on Pyro against its matrix products, a plain loop and stock Pyro.

    python -m benchmarks.pyro_step [--repeats 15] [--json]

All variants are interleaved in one process with two threads and the same allocator settings; medians are
reported. Trust the ratios, not the milliseconds. Shape: Penn Treebank as Li et al. 2019 (E 256, H 256, Z 32,
V 10,000, T 22).
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import resident
from benchmarks.measuring import Step, medians, show
from guidebook.engines.memory import keep_freed_memory
from guidebook.engines.protocol import Control, Objective, Settings
from guidebook.engines.pyro import Program
from guidebook.guides.pairs import PAIRS
from guidebook.guides.sentence_guide import SentenceGuide
from guidebook.models.sentence_vae import SentenceModel

PAIR = PAIRS["sentence_vae"]
DATA_SIZE = 42_068


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


class Plain(nn.Module):
    """The same network as a competent user writes it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder_embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.encoder = nn.LSTM(shape.embedding, shape.hidden, batch_first=True)
        self.posterior = nn.Linear(shape.hidden, 2 * shape.latent, bias=False)
        self.embedding = nn.Embedding(shape.vocabulary, shape.embedding)
        self.initial = nn.Linear(shape.latent, shape.hidden, bias=False)
        self.decoder = nn.LSTM(shape.embedding + shape.latent, shape.hidden, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(shape.hidden, shape.vocabulary, bias=False)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        _, (h, _) = self.encoder(self.encoder_embedding(tokens))
        loc, log_variance = self.posterior(h[0]).chunk(2, -1)
        return loc, log_variance

    def decode(self, z: Tensor, inputs: Tensor) -> Tensor:
        embedded = self.dropout(self.embedding(inputs))
        c = self.initial(z)[None]
        repeated = z[:, None].expand(-1, inputs.shape[1], -1)
        h, _ = self.decoder(torch.cat((embedded, repeated), -1), (c.tanh(), c))
        return self.output(self.dropout(h))


def hand(shape: Shape, precision: str = "float32") -> Step:
    """nn.Embedding, nn.LSTM, cross_entropy and Adam in a plain loop."""
    torch.manual_seed(0)
    net = Plain(shape)
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    batch = {name: torch.as_tensor(array).long() for name, array in shape.batch().items()}

    def step() -> float:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loc, log_variance = net.encode(batch["tokens"])
            z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
            logits = net.decode(z, batch["inputs"])
            words = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=0, reduction="sum")
        kl = 0.5 * (loc.square() + log_variance.exp() - 1 - log_variance).sum()
        loss = (words + kl) / shape.rows
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def stock(shape: Shape) -> Step:
    """A plain Pyro program, a masked Categorical per word, with `TraceMeanField_ELBO` and stock SVI."""
    torch.manual_seed(0)
    net = Plain(shape)
    batch = {name: torch.as_tensor(array).long() for name, array in shape.batch().items()}

    def model(tokens: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("sentences", DATA_SIZE, subsample=batch["index"], dim=-2):
            zero = torch.zeros(len(tokens), 1, shape.latent)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1)).squeeze(-2)
            real: Any = tokens[:, 1:] > 0
            with pyro.plate("words", shape.steps, dim=-1), pyro.poutine.mask(mask=real):
                logits = net.decode(z, tokens[:, :-1])
                pyro.sample("x", dist.Categorical(logits=logits), obs=tokens[:, 1:])

    def guide(tokens: Tensor) -> None:
        pyro.module("net", net)
        loc, log_variance = (part.unsqueeze(-2) for part in net.encode(tokens))
        with pyro.plate("sentences", DATA_SIZE, subsample=batch["index"], dim=-2):
            pyro.sample("z", dist.Normal(loc, (0.5 * log_variance).exp()).to_event(1))

    pyro.clear_param_store()
    svi = SVI(model, guide, PyroOptim(torch.optim.Adam, {"lr": 1e-3}), TraceMeanField_ELBO())
    return lambda: svi.step(batch["tokens"])


def program(shape: Shape, precision: str = "float32") -> tuple[Program, Any]:
    """The engine with the pair of the specs, and its state."""
    networks = PAIR.realisable(SentenceModel(), SentenceGuide(), shape.vocabulary)
    objective = Objective(lambda terms, weight: weight * terms.total_kl() - terms.reconstruction())
    engine = Program(PAIR, networks, Settings(data_size=DATA_SIZE, objective=objective, precision=precision))
    return engine, engine.init(shape.batch())


def ours(shape: Shape, precision: str = "float32") -> Step:
    """The engine's own step."""
    engine, state = program(shape, precision)
    batch, count = shape.batch(), iter(range(10**9))
    rates = {"model": 1e-3, "guide": 1e-3}
    return lambda: engine.step(state, [batch], Control(next(count), 1.0, rates))


class Product:
    """One product of a step, forward and both gradients, with operands and results allocated beforehand."""

    def __init__(self, rows: int, inputs: int, outputs: int, times: int = 1, weight_gradient: int = 1) -> None:
        self.x, self.y = torch.randn(times * rows, inputs), torch.randn(times * rows, outputs)
        self.w, self.dw, self.dx = (
            torch.randn(outputs, inputs),
            torch.randn(outputs, inputs),
            torch.randn(rows, inputs),
        )
        self.rows, self.times = rows, times
        self.out = torch.empty(rows, outputs)
        self.dx_all = torch.empty(times * rows, inputs) if times == 1 else self.dx

    def forward(self) -> None:
        for t in range(self.times):
            torch.mm(self.x[t * self.rows : (t + 1) * self.rows], self.w.t(), out=self.out)

    def backward(self) -> None:
        for t in range(self.times):
            torch.mm(self.y[t * self.rows : (t + 1) * self.rows], self.w, out=self.dx)
        torch.mm(self.y.t(), self.x, out=self.dw)


def products(shape: Shape) -> list[Product]:
    """All products of the step but the ones of the latent, which cost nothing."""
    b, t, e, h = shape.rows, shape.steps, shape.embedding, shape.hidden
    return [
        Product(b * (t + 1), e, 4 * h),
        Product(b, h, 4 * h, times=t + 1),
        Product(b * t, e, 4 * h),
        Product(b, h, 4 * h, times=t),
        Product(b * t, h, shape.vocabulary),
    ]


def floor(shape: Shape) -> Step:
    """The step's matrix products alone, in float32."""
    made = products(shape)

    def step() -> None:
        for product in made:
            product.forward()
        for product in reversed(made):
            product.backward()

    return step


def training(rows: int, repeats: int) -> dict[str, Any]:
    """One entry: every variant of a training step at batch `rows`."""
    shape = Shape(rows)
    found = medians(
        {
            "floor": floor(shape),
            "hand": hand(shape),
            "hand_bfloat16": hand(shape, "bfloat16"),
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
    return {"name": f"pyro_step_batch_{rows}"} | {f"{k}_ms": v for k, v in found.items()} | ratios


def importance(repeats: int, particles: int = 500) -> dict[str, Any]:
    """One entry: IW-NLL of one sentence with 500 particles, and the bias of its bfloat16 variant in nats."""
    shape = Shape(1)
    engines = {precision: program(shape, precision) for precision in ("float32", "bfloat16")}
    for engine, state in engines.values():  # the size of trained weights, so that rounding shows
        engine.load_weights(state, {name: 20 * value for name, value in engine.weights(state).items()})
    batch, found = shape.batch(), {}

    def bound(precision: str) -> np.ndarray:
        engine, state = engines[precision]
        return engine.log_weights(state, batch, seed=0, particles=particles, rows=particles)

    made = [
        Product(particles, shape.hidden, 4 * shape.hidden, times=shape.steps),
        Product(particles, shape.hidden, shape.vocabulary, times=shape.steps),
    ]
    variants: dict[str, Step] = {precision: lambda precision=precision: bound(precision) for precision in engines}
    found = medians({"floor": lambda: [product.forward() for product in made], **variants}, repeats)
    weights = {precision: bound(precision) for precision in engines}
    nll = {name: float(np.log(particles) - np.logaddexp.reduce(w[:, 0])) for name, w in weights.items()}
    return {
        "name": "pyro_iw_nll_500",
        "floor_ms": found["floor"],
        "ours_ms": found["float32"],
        "ours_bfloat16_ms": found["bfloat16"],
        "ours/floor": found["float32"] / found["floor"],
        "ours_bfloat16/floor": found["bfloat16"] / found["floor"],
        "bfloat16_bias_nats": nll["bfloat16"] - nll["float32"],
    }


def peak(variant: str, vocabulary: int) -> float:
    """MiB a step needs at its peak beyond parameters and slots: gradients, activations, logits."""
    torch.set_num_threads(2)
    step = {"hand": hand, "ours": ours}[variant](Shape(32, vocabulary))
    for _ in range(2):
        step()
    for parameter in [found for found in gc.get_objects() if isinstance(found, nn.Parameter)]:
        parameter.grad = None
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak: proc(5)
    step()
    return resident("VmHWM") - before


def memory(vocabulary: int = 50_000) -> dict[str, Any]:
    """One entry: peak resident memory of training at V = 50,000, B = 32, each variant in its own process."""
    found = {}
    for variant in ("hand", "ours"):
        command = [
            sys.executable,
            "-m",
            "benchmarks.pyro_step",
            "--peak",
            variant,
            "--vocabulary",
            str(vocabulary),
        ]
        found[variant] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "name": f"pyro_peak_memory_{vocabulary}",
        "ours_mib": found["ours"],
        "hand_mib": found["hand"],
        "ours/hand": found["ours"] / found["hand"],
    }


def measure(repeats: int = 15) -> list[dict[str, Any]]:
    """Everything this script measures: a list of entries with a name, times in milliseconds and ratios."""
    keep_freed_memory()
    torch.set_num_threads(2)
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
