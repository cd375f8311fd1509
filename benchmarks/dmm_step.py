"""A training step of the deep Markov model on Pyro, against a program written as the library's own example is.

    python -m benchmarks.dmm_step [--repeats 15] [--processor-time] [--json]

X = 88 notes, Z = 100, emitter 100, transition 200, a backward LSTM of 200, batch 20, T = 100, float32. The example's
design: a site for each step's z and x inside `pyro.markov`, masked step by step, the gated transition computed at each
step in the model and the combiner at each step in the guide, `Trace_ELBO`. Weights are those of our own program, and
both give the same log p(x, z) and log q(z) at the same z, or nothing is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measuring import Step, clock, medians, show
from benchmarks.vrnn_step import DATA_SIZE, Shape, stepping
from guidebook.engines import load
from guidebook.engines.memory import keep_freed_memory
from guidebook.engines.protocol import Settings
from guidebook.guides.dmm_guide import DMMGuide
from guidebook.guides.pairs import PAIRS
from guidebook.inference import KL
from guidebook.models.dmm import DMMModel

SHAPE = Shape(steps=100, rows=20)
PAIR = PAIRS["dmm"]


class Example(nn.Module):
    """The two programs of the library's example, over the weights of ours by their names."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        for name, value in weights.items():
            if not name.startswith("backward."):
                self.register_parameter(name.replace(".", "_"), nn.Parameter(torch.tensor(value)))
        gates, inputs = weights["backward.weight_ih"].shape
        self.lstm = nn.LSTM(inputs, gates // 4)
        second = {"backward.bias_hh": np.zeros(gates, np.float32)}
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(self.lstm, f"{name}_l0").copy_(torch.tensor((weights | second)[f"backward.{name}"]))

    def linear(self, name: str, part: str, x: Tensor) -> Tensor:
        return F.linear(x, getattr(self, f"{name}_weight_{part}"), getattr(self, f"{name}_bias_{part}"))

    def transition(self, z: Tensor) -> tuple[Tensor, Tensor]:
        of_gate, of_proposed = self.linear("prior", "in", z).relu().chunk(2, -1)
        gate = self.linear("prior", "gate", of_gate).sigmoid()
        proposed = self.linear("prior", "proposed", of_proposed)
        loc = (1 - gate) * (z + self.linear("prior", "loc", z)) + gate * proposed
        return loc, F.softplus(self.linear("prior", "scale", proposed.relu()))

    def emission(self, z: Tensor) -> Tensor:
        hidden = self.linear("emitter", "1", self.linear("emitter", "0", z).relu()).relu()
        return self.linear("emitter", "2", hidden)

    def model(self, x: Tensor, mask: Tensor) -> None:
        pyro.module("dmm", self)
        z: Tensor = self.prior_first.expand(len(x), -1)  # pyright: ignore[reportCallIssue]
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                loc, scale = self.transition(z)
                z = pyro.sample(f"z_{t}", dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1))
                notes = dist.Bernoulli(logits=self.emission(z)).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", notes, obs=x[:, t])

    def guide(self, x: Tensor, mask: Tensor) -> None:
        pyro.module("dmm", self)
        read = self.lstm(x.transpose(0, 1).flip(0))[0].flip(0)
        z: Tensor = self.prior_first.expand(len(x), -1)  # pyright: ignore[reportCallIssue]
        with pyro.plate("sequences", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                combined = 0.5 * (self.linear("combiner", "0", z).tanh() + read[t])
                loc, log_variance = F.linear(combined, self.posterior_weight).chunk(2, -1)  # pyright: ignore[reportArgumentType]
                law = dist.Normal(loc, (0.5 * log_variance).exp()).mask(mask[:, t : t + 1]).to_event(1)
                z = pyro.sample(f"z_{t}", law)


def ours() -> tuple[Step, Example]:
    """The engine's own step, and the example with its weights."""
    networks = PAIR.realisable(DMMModel(), DMMGuide(), SHAPE.notes)
    program = load("pyro").Program(PAIR, networks, Settings(data_size=DATA_SIZE, objective=KL().objective()))
    arrays = SHAPE.batch()
    state = program.init(arrays)
    example = Example(program.weights(state))
    check(program, state, arrays, example)
    return stepping(program, state, arrays), example


def check(program: Any, state: Any, arrays: dict[str, np.ndarray], example: Example) -> None:
    """The example's densities at a draw of ours are ours."""
    terms = program.terms(state, arrays, seed=0)
    z = torch.tensor(program.draws(state, arrays, seed=0, particles=1)["z"]).float()[0]
    data = {f"z_{t}": z[:, t] for t in range(SHAPE.steps)}
    inputs = torch.tensor(arrays["x"]), torch.tensor(arrays["mask"])
    expected = {
        example.guide: terms.log_posterior["z"].sum(),
        example.model: terms.log_prior["z"].sum() + terms.log_likelihood["x"].sum(),
    }
    for of, value in expected.items():
        found = poutine.trace(poutine.condition(of, data)).get_trace(*inputs).log_prob_sum()
        np.testing.assert_allclose(torch.as_tensor(found).item(), value, rtol=1e-4)


def stock(example: Example) -> Step:
    arrays = SHAPE.batch()
    inputs = torch.tensor(arrays["x"]), torch.tensor(arrays["mask"])
    pyro.clear_param_store()
    svi = SVI(example.model, example.guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO())
    return lambda: svi.step(*inputs)


def measure(repeats: int = 15, clock: Callable[[], float] = time.perf_counter) -> list[dict[str, Any]]:
    """One entry: our step and the example's."""
    keep_freed_memory()
    torch.set_num_threads(1 if clock is time.process_time else 2)
    step, example = ours()
    found = medians({"ours": step, "stock": stock(example)}, repeats, clock)
    ratio = {"stock/ours": found["stock"] / found["ours"]}
    return [{"name": "pyro_dmm"} | {f"{k}_ms": v for k, v in found.items()} | ratio]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    show(measure(options.repeats, clock(options.processor_time)), options.json)


if __name__ == "__main__":
    main()
