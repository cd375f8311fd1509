"""The likelihood of a sentence against log_softmax and gather, its gradients, its samples and its memory."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import chi2

from guidebook.engines.pyro import distributions
from guidebook.engines.pyro.distributions import TokenSequence, token_log_prob
from guidebook.engines.pyro.networks import realise
from guidebook.models.decoders import GRUDecoder, LSTMDecoder
from guidebook.models.errors import BadInput
from guidebook.models.spec import Network

torch.set_num_threads(1)
B, T, V, H, S = 4, 5, 13, 6, 3
LENGTHS = torch.tensor([5, 1, 3, 0])
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def naive(states, weight, targets, lengths):
    """The composition that keeps batch × time × vocabulary."""
    table = (states @ weight.t()).log_softmax(-1)
    targets = targets.expand(*states.shape[:-1]).long()
    per_token = table.gather(-1, targets[..., None])[..., 0]
    return (per_token * (torch.arange(states.shape[-2]) < lengths[..., None])).sum(-1)


@pytest.fixture(params=[(B,), (S, B)], ids=["rows", "particles"])
def case(request):
    generator = torch.Generator().manual_seed(0)
    states, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((*request.param, T, H), (V, H))
    )
    return states, weight, torch.randint(0, V, (B, T), generator=generator), LENGTHS


@pytest.fixture(params=[1, 40, 2**20], ids=["a row a tile", "a few rows a tile", "one tile"])
def _tiles(request, monkeypatch):
    monkeypatch.setattr(distributions, "TILE", request.param)


def upstreams(like):
    """Upstream gradients: the same for all, of both signs, with zeros, and for one row alone."""
    generator = torch.Generator().manual_seed(1)
    one = torch.zeros_like(like)
    one[..., 0] = 2.5
    mixed = torch.randn(like.shape, generator=generator, dtype=like.dtype)
    return (
        torch.full_like(like, -1 / B),
        torch.ones_like(like),
        mixed,
        mixed.clamp(min=0),
        one,
        torch.zeros_like(like),
    )


@pytest.mark.usefixtures("_tiles")
def test_value_and_gradients_are_exact(case):
    states, weight, *data = case
    ours, reference = token_log_prob(states, weight, *data), naive(states, weight, *data)
    torch.testing.assert_close(ours, reference, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(token_log_prob(states, weight, *data), reference, **CLOSE)
    for upstream in upstreams(reference):
        ours = token_log_prob(states, weight, *data)
        found = torch.autograd.grad(ours, (states, weight), upstream)
        wanted = torch.autograd.grad(reference, (states, weight), upstream, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("alone", [0, 1])
def test_gradient_of_one_side_alone(case, alone):
    states, weight, *data = case
    sides = [tensor.detach().requires_grad_(index == alone) for index, tensor in enumerate((states, weight))]
    (found,) = torch.autograd.grad(token_log_prob(*sides, *data).sum(), sides[alone])
    (wanted,) = torch.autograd.grad(naive(*sides, *data).sum(), sides[alone])
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_live_graphs_share_nothing(case):
    states, weight, targets, lengths = case
    others = (targets + 1) % V
    first, second = (token_log_prob(states, weight, ids, lengths) for ids in (targets, others))
    with torch.no_grad():
        token_log_prob(states * 3, weight, others, lengths)
    found = [torch.autograd.grad(x.sum(), (states, weight), retain_graph=True) for x in (second, first, second, first)]
    wanted = [
        torch.autograd.grad(naive(states, weight, ids, lengths).sum(), (states, weight)) for ids in (others, targets)
    ]
    for ours, reference in zip(found, wanted * 2, strict=True):
        for one, other in zip(ours, reference, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


def test_gradients_add_up_over_calls(case):
    states, weight, *data = case
    for _ in range(3):
        token_log_prob(states, weight, *data).mean().backward()
    accumulated = weight.grad.clone()
    (once,) = torch.autograd.grad(naive(states, weight, *data).mean(), weight)
    torch.testing.assert_close(accumulated, 3 * once, **CLOSE)


@pytest.mark.parametrize("size", [1e-3, 1.0, 60.0, 3000.0])
def test_logits_of_any_size_stay_finite(size):
    """Far beyond what exp can hold in float32, in either direction."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(B, T, H, generator=generator)
    weight = torch.randn(V, H, generator=generator) * size / H**0.5
    targets = torch.randint(0, V, (B, T), generator=generator)
    for sign in (1, -1):
        tensors = [(states.abs() * sign).requires_grad_(), weight.abs().requires_grad_()]
        ours = token_log_prob(*tensors, targets, LENGTHS)
        found = torch.autograd.grad(ours.sum(), tensors)
        exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
        reference = naive(*exact, targets, LENGTHS)
        wanted = torch.autograd.grad(reference.sum(), exact)
        torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=1e-4 * max(1, size / 60))
        for one, other in zip(found, wanted, strict=True):
            assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6


def test_no_counted_token_gives_zero(case):
    states, weight, targets, lengths = case
    ours = token_log_prob(states, weight, targets, torch.zeros_like(lengths))
    assert torch.equal(ours, torch.zeros_like(ours))
    found = torch.autograd.grad(ours.sum(), (states, weight))
    assert all(gradient.abs().max() == 0 for gradient in found)


def test_padded_states_may_hold_anything(case):
    states, weight, *data = case
    spoilt = states.detach().clone()
    spoilt[..., torch.arange(T) >= LENGTHS[:, None], :] = torch.nan
    spoilt.requires_grad_()
    ours = token_log_prob(spoilt, weight, *data)
    torch.testing.assert_close(ours, naive(states, weight, *data), **CLOSE)
    found = torch.autograd.grad(ours.sum(), (spoilt, weight))
    assert all(gradient.isfinite().all() for gradient in found)


def test_int32_targets_are_ids_too(case):
    states, weight, targets, lengths = case
    ours = token_log_prob(states, weight, targets.int(), lengths.int())
    torch.testing.assert_close(ours, naive(states, weight, targets, lengths), **CLOSE)
    ours.sum().backward()


def test_bfloat16_is_close_in_value_and_gradient():
    torch.manual_seed(0)
    states, weight = torch.randn(8, 20, 64, requires_grad=True), (0.1 * torch.randn(500, 64)).requires_grad_()
    targets, lengths = torch.randint(0, 500, (8, 20)), torch.full((8,), 20)
    exact = token_log_prob(states, weight, targets, lengths)
    rounded = token_log_prob(states, weight, targets, lengths, precision="bfloat16")
    assert ((exact - rounded).abs() / exact.abs()).max() < 1e-3
    found, wanted = (torch.autograd.grad(x.sum(), (states, weight)) for x in (rounded, exact))
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).norm() < 0.02 * other.norm()


MEMORY = """
import re, torch
from pathlib import Path
from guidebook.engines.pyro.distributions import token_log_prob
torch.set_num_threads(1)
states, weight = torch.randn(32, 22, 64, requires_grad=True), torch.randn(50_000, 64, requires_grad=True)
x, lengths = torch.randint(0, 50_000, (32, 22)), torch.full((32,), 22)
token_log_prob(states[:1, :1], weight, x[:1, :1], lengths[:1]).sum().backward()
weight.grad = None
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
token_log_prob(states, weight, x, lengths).mean().backward()
print(peak() - before)
"""


def test_memory_is_far_below_batch_time_vocabulary():
    """32 × 22 × 50,000 logits are 141 MB, twice that with their gradient; the weight's own is 13 MB."""
    grown = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True).stdout
    assert 0 < int(grown) * 1024 < 0.35 * 32 * 22 * 50_000 * 4


def decoder_of(kind=LSTMDecoder, latent=2, vocabulary=5, scale=1.5, **fields):
    network = Network(kind(embedding=3, hidden=4, dropout=0.0, **fields), {"vocabulary": vocabulary, "latent": latent})
    rng = np.random.default_rng(3)
    layout = network.spec.layout(**network.sizes)
    return realise(network, {n: scale * rng.standard_normal(w.shape) for n, w in layout.items()}, dtype="float64")


def sequence(decoder, z, rows, steps):
    zeros = torch.zeros(rows, steps, dtype=torch.long)
    return decoder(z, zeros, torch.full((rows,), steps))


def test_shapes_and_expansion():
    z = torch.randn(2, 2, dtype=torch.float64)
    x = sequence(decoder_of(), z, 2, 4)
    value = torch.randint(0, 5, (2, 4))
    assert (x.batch_shape, x.event_shape, x.has_rsample) == ((2,), (4,), False)
    wide = x.expand((3, 2))
    assert (wide.batch_shape, wide.event_shape) == ((3, 2), (4,))
    assert torch.equal(wide.log_prob(value), x.log_prob(value).expand(3, 2))
    assert wide.sample().shape == (3, 2, 4)
    assert x.sample((6,)).shape == (6, 2, 4)
    many = torch.randint(0, 5, (3, 2, 4))
    assert torch.allclose(x.log_prob(many), torch.stack([x.log_prob(one) for one in many]))
    whole = x.to_event(1)
    assert whole.log_prob(value).shape == ()
    assert torch.equal(x.mask(torch.tensor([True, False])).log_prob(value)[1], torch.zeros((), dtype=torch.float64))


def test_wrong_shapes_are_refused_in_a_sentence():
    x = sequence(decoder_of(), torch.randn(2, 2, dtype=torch.float64), 2, 4)
    with pytest.raises(BadInput, match="do not end in T = 4 tokens"):
        x.log_prob(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(BadInput, match="do not fit a batch"):
        x.log_prob(torch.zeros(3, 4, dtype=torch.long))
    with pytest.raises(BadInput, match="do not fit a projection"):
        TokenSequence(torch.zeros(2, 4, 3), torch.zeros(5, 4), torch.ones(2))
    with pytest.raises(BadInput, match="without its decoder"):
        TokenSequence(torch.zeros(2, 4, 3), torch.zeros(5, 3), torch.ones(2)).sample()


def sentences_of(steps, vocabulary):
    """Every sentence that ends with eos or fills all steps."""
    found, open_ones = [], [()]
    for _ in range(steps):
        longer = [(*s, v) for s in open_ones for v in range(vocabulary)]
        found += [s for s in longer if s[-1] == distributions.EOS]
        open_ones = [s for s in longer if s[-1] != distributions.EOS]
    return found + open_ones


@pytest.mark.parametrize("kind", [LSTMDecoder, GRUDecoder])
@pytest.mark.parametrize("latent", [2, 0])
def test_samples_have_the_exact_distribution(kind, latent):
    """χ² over all sentences of at most 2 of 5 words, at a false-alarm rate of 1e-6 for each of 4 cases."""
    steps, count, vocabulary = 2, 20_000, 5
    decoder = decoder_of(kind, latent)
    z = torch.tensor([[0.5, -1.0]], dtype=torch.float64) if latent else None
    sentences = sentences_of(steps, vocabulary)
    ids = torch.tensor([s + (0,) * (steps - len(s)) for s in sentences])
    inputs = torch.cat((torch.full((len(ids), 1), distributions.BOS), ids[:, :-1]), 1)
    lengths = torch.tensor([len(s) for s in sentences])
    exact = decoder(None if z is None else z.expand(len(ids), -1), inputs, lengths).log_prob(ids).exp().detach().numpy()
    assert abs(exact.sum() - 1) < 1e-9
    torch.manual_seed(0)
    drawn = sequence(decoder, z, 1, steps).sample((count,))[:, 0]
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) <= set(map(tuple, ids.tolist()))
    observed = np.array([counts[tuple(row)] for row in ids.tolist()])
    rare = exact * count < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        exact = np.append(exact[~rare], exact[rare].sum())
    statistic = ((observed - count * exact) ** 2 / (count * exact)).sum()
    assert statistic < chi2.isf(1e-6, len(exact) - 1)


def test_sampling_stops_once_all_rows_have_ended():
    decoder = decoder_of()
    calls = []

    class Ending(torch.nn.Module):
        def start(self, z, rows, steps):
            return decoder.start(z, rows, steps)

        def step(self, state, tokens):
            calls.append(tokens.clone())
            state, logits = decoder.step(state, tokens)
            ends = torch.arange(len(tokens)) < len(calls)
            certain = torch.full_like(logits, -torch.inf)
            certain[ends, distributions.EOS] = 0
            certain[~ends, 3] = 0
            return state, certain

    z = torch.randn(3, 2, dtype=torch.float64)
    x = TokenSequence(torch.zeros(3, 9, 4), torch.zeros(5, 4), torch.full((3,), 9), decoder=Ending(), z=z)
    assert x.sample().tolist() == [[2] + [0] * 8, [3, 2] + [0] * 7, [3, 3, 2] + [0] * 6]
    assert len(calls) == 3
    assert calls[0].tolist() == [distributions.BOS] * 3


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
def test_stock_svi_runs_on_it(loss, particles):
    pyro.clear_param_store()
    decoder = decoder_of()
    inputs, targets = torch.randint(0, 5, (2, 4, 6))
    lengths = torch.tensor([6, 2, 3, 1])

    def model():
        net = pyro.module("decoder", decoder)
        with (
            pyro.plate("sentences", 40, subsample=torch.arange(4)),
            pyro.poutine.mask(mask=torch.arange(4) < 3),
        ):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", net(z, inputs, lengths), obs=targets)

    def guide():
        loc = pyro.param("loc", torch.zeros(4, 2, dtype=torch.float64))
        with (
            pyro.plate("sentences", 40, subsample=torch.arange(4)),
            pyro.poutine.mask(mask=torch.arange(4) < 3),
        ):
            pyro.sample("z", pyro.distributions.Normal(loc, 0.1).to_event(1))

    elbo = loss(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(40)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    pyro.clear_param_store()
