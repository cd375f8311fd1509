"""What the tests that hold both engines share: a pair on an engine in float64, batches, and replayed latents."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import equinox as eqx
import jax
import numpy as np
import pytest
import torch
from numpyro import handlers
from pyro.poutine.messenger import Messenger

from guidebook import engines
from guidebook.engines.protocol import Control, OptimiserSpec, Settings
from guidebook.inference import KL
from guidebook.models import Network
from guidebook.models.measures import NEVER

torch.set_num_threads(1)
ENGINES = ("pyro", "numpyro")


@pytest.fixture
def _float64():
    """JAX's 64-bit mode for one test."""
    with jax.enable_x64(True):
        yield


def program(engine, pair, networks=None, **settings):
    """The pair realised on one engine: float64, plain SGD, no clipping, unless said otherwise."""
    divergence = settings.pop("divergence", KL())
    chosen = {"dtype": "float64", "optimisers": {side: OptimiserSpec("sgd") for side in ("model", "guide")}}
    networks = pair.realisable(None, None) if networks is None and pair.engine is None else networks or {}
    return engines.load(engine).Program(pair, networks, Settings(objective=divergence.objective(), **chosen | settings))


def control(step=0, weight=1.0, rate=1.0):
    return Control(step, weight, {"model": rate, "guide": rate})


def gradients(fitted, state, *batches, weight=1.0):
    """Parameter → gradient of the objective's mean over the rows, from one step of SGD; and the step's Info."""
    before = fitted.weights(state)
    after, info = fitted.step(state, batches, control(weight=weight))
    moved = fitted.weights(after)
    return {name: before[name] - moved[name] for name in before}, {key: float(value) for key, value in info.items()}


def rows(arrays, filler=0):
    """A batch of arrays, with `filler` copies of the first row that weigh nothing."""
    count = len(next(iter(arrays.values())))
    chosen = np.array([*range(count), *[0] * filler])
    weight = np.array([1.0] * count + [0.0] * filler, np.float32)
    return {name: np.asarray(array)[chosen] for name, array in arrays.items()} | {
        "weight": weight,
        "index": chosen.astype(np.int32),
    }


def sentences(*words, width=None, filler=0, unknown=()):
    """A batch of sentences given as ids of their words; `unknown` places (row, t) of the inputs are hidden (id 3)."""
    lengths = np.array([len(sentence) + 1 for sentence in words], np.int32)
    tokens = np.zeros((len(words), (width or lengths.max()) + 1), np.int32)
    for row, sentence in enumerate(words):
        tokens[row, : len(sentence) + 2] = [1, *sentence, 2]
    inputs = tokens[:, :-1].copy()
    for place in unknown:
        inputs[place] = 3
    return rows({"tokens": tokens, "inputs": inputs, "targets": tokens[:, 1:], "lengths": lengths}, filler)


class _Standardised(Messenger):
    """Latents of a Pyro program set to mean + noise · standard deviation."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["name"] in self.noise and not msg["is_observed"]:
            noise, fn = torch.as_tensor(self.noise[msg["name"]]), msg["fn"]
            packed = _packed("pyro", fn, noise)
            msg["value"] = fn.mean + fn.stddev * noise if packed is None else packed


def _packed(engine, fn, noise):
    """What a decoder attends to, made from noise (…, places, components, p + 1); None of another law.

    Each engine draws random measures by a generator of its own. In place of the draw this is a smooth function of the law's
    parameters: π = softmax(log α + noise), z = μ + σ · noise.
    """
    fn = engine_module(engine, "analytic").peel(fn)[0]
    if not hasattr(fn, "mask_of_components") and not hasattr(fn, "mask_of_places"):
        return None
    places = getattr(fn, "places", 1)
    flat = (*noise.shape[:-3], fn.event_shape[0], noise.shape[-1])
    noise = noise[..., :places, : fn.event_shape[0] // places, :].reshape(flat)
    tiled = {"pyro": lambda x, dim: torch.cat([x] * places, dim)}.get(
        engine, lambda x, dim: jax.numpy.concatenate([x] * places, dim)
    )
    where = {"pyro": torch.where, "numpyro": jax.numpy.where}[engine]
    weighted = hasattr(fn, "mask_of_components")
    mask = tiled(fn.mask_of_components, -1) if weighted else fn.mask_of_places
    z = tiled(fn.loc, -2) + (0.0 if fn.scale is None else tiled(fn.scale, -2) * noise[..., 1:])
    z = where(mask[..., None], z, 0.0)
    if weighted:
        logits = where(mask, tiled(fn.log_alpha, -1) + noise[..., 0], NEVER)
        total = logits.logsumexp(-1) if engine == "pyro" else jax.nn.logsumexp(logits, -1)
        first = where(mask, logits - total[..., None], NEVER)
    else:
        first = where(mask, 0.0 * z[..., 0], NEVER)
    return {"pyro": torch, "numpyro": jax.numpy}[engine].concatenate((first[..., None], z), -1)


def replaying(engine, pair, noise):
    """The pair with its guide's draws made from this standard noise: both engines meet the same latents.

    Gradients flow through the draw as they do through a reparameterised sample.
    """

    def in_pyro(*args):
        with _Standardised(noise):
            pair.guide(*args)

    def standardised(site):
        if site["type"] != "sample" or site["name"] not in noise:
            return None
        fn, given = site["fn"], noise[site["name"]]
        packed = _packed("numpyro", fn, given)
        return fn.mean + fn.variance**0.5 * given if packed is None else packed

    def in_numpyro(*args):
        handlers.substitute(lambda: pair.guide(*args), substitute_fn=standardised)()

    if pair.guide is None:
        return pair
    return replace(pair, guide={"pyro": in_pyro, "numpyro": in_numpyro}[engine])


class _Fixed(Messenger):
    """Latents of a Pyro program set to given values."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg):
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = torch.as_tensor(self.values[msg["name"]])


def drawing(engine, pair, values):
    """The pair with these values (S, B, …) as its guide's draws."""

    def in_pyro(*args):
        with _Fixed(values):
            pair.guide(*args)

    def in_numpyro(*args):
        handlers.substitute(lambda: pair.guide(*args), data=values)()

    return replace(pair, guide={"pyro": in_pyro, "numpyro": in_numpyro}[engine])


class Law:
    """A realised family, given arrays, on either engine, seen through NumPy."""

    def __init__(self, engine, module, *arrays):
        self.engine, self.module, self.arrays = engine, module, arrays
        self.array = torch.as_tensor if engine == "pyro" else jax.numpy.asarray
        self.fn = module(*map(self.array, arrays))

    def log_prob(self, z):
        return numpy_of(self.fn.log_prob(self.array(z)))

    def draws(self, count, seed=0):
        """(count, …)."""
        if self.engine == "pyro":
            torch.manual_seed(seed)
            return numpy_of(self.fn((count,)))
        return numpy_of(self.fn.sample(jax.random.key(seed), (count,)))

    def kl(self, prior):
        """Analytic KL from another law, or None."""
        return numpy_of(engine_module(self.engine, "analytic").analytic_kl(self.fn, prior.fn))

    def gradient(self, f, count, seed=0, weight="weight"):
        """E f(z) as a mean over draws and its gradient to a weight. f must be arithmetic, of z (count, …)."""

        def mean(fn):
            if self.engine == "pyro":
                torch.manual_seed(seed)
                return f(fn.rsample((count,))).mean()
            return f(fn.sample(jax.random.key(seed), (count,))).mean()

        return float(numpy_of(mean(self.fn))), gradient_of(self, mean, weight)


def gradient_of(law, f, weight):
    """∂ f(distribution) / ∂ weight, for a scalar f."""
    arrays = [law.array(array) for array in law.arrays]
    if law.engine == "pyro":
        return numpy_of(torch.autograd.grad(f(law.module(*arrays)), law.module.get_parameter(weight))[0])
    moved = lambda array: eqx.tree_at(lambda module: module.weights[weight], law.module, array)  # noqa: E731
    return numpy_of(jax.grad(lambda array: f(moved(array)(*arrays)))(law.module.weights[weight]))


def realised(engine, spec, weights=None, name="net", **sizes):
    """The network of a spec on an engine, float64, in evaluation."""
    network = Network(spec, sizes)
    weights = network.initial_weights(name, 0) if weights is None else weights
    module = engine_module(engine, "networks").realise(network, weights, dtype="float64")
    return module.eval() if engine == "pyro" else module


def engine_module(engine, name):
    return importlib.import_module(f"guidebook.engines.{engine}.{name}")


def numpy_of(array):
    return None if array is None else array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="session")
def both():
    return SimpleNamespace(
        engines=ENGINES,
        program=program,
        control=control,
        gradients=gradients,
        rows=rows,
        sentences=sentences,
        replaying=replaying,
        drawing=drawing,
        realised=realised,
        Law=Law,
        gradient_of=gradient_of,
        numpy_of=numpy_of,
        engine_module=engine_module,
    )
