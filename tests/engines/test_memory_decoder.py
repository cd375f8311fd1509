"""Decoders that attend to a memory, of either kind, against PyTorch's own layers and themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from guidebook.inference.measures import line, pruned
from guidebook.models.measures import NEVER, DirichletProcessPrior
from guidebook.models.transformers import MemoryDecoder

V, P = 9, 4
STACK = {"hidden": 4, "layers": 2, "heads": 2, "feedforward": 5, "dropout": 0.0}
pytestmark = pytest.mark.usefixtures("_float64")


def made(engine, x):
    return torch.as_tensor(x) if engine == "pyro" else jnp.asarray(x)


def decoder_of(both, engine, weighted=1, **fields):
    """A realised decoder of every weight away from where it starts, and its weights."""
    spec = MemoryDecoder(**STACK | fields)
    sizes = {"vocabulary": V, "latent": P, "weighted": weighted}
    rng = np.random.default_rng(1)
    layout = spec.layout(**sizes)
    weights = {name: start.start + 0.5 * rng.normal(size=start.shape) for name, start in layout.items()}
    return both.realised(engine, spec, weights, **sizes), weights


def measures(count=5, rows=3, width=P, seed=2):
    """A draw and a mean of random measures, with a row that has fewer components."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(rows, count, 1))
    first[0, 3:] = NEVER
    draw = np.concatenate((first, rng.normal(size=(rows, count, width))), -1)
    draw[..., 0] -= logsumexp(draw[..., 0], axis=-1, keepdims=True)
    draw[0, 3:, 0] = NEVER
    variances = rng.uniform(0.2, 2.0, size=(rows, count, width))
    return {"draw": draw, "mean": np.concatenate((draw, variances), -1)}


INPUTS = np.array([[1, 4, 5, 6, 2], [1, 7, 3, 2, 0], [1, 4, 4, 8, 4]])


def states(both, engine, decoder, measure):
    return both.numpy_of(decoder.states(made(engine, measure), made(engine, INPUTS)))


@pytest.mark.parametrize("form", ["draw", "mean"])
def test_components_have_no_order_and_hidden_ones_no_say(both, engine, form):
    """Spec 6 and 8: permuted, and with NaN where there is nothing."""
    decoder, _ = decoder_of(both, engine, rule="exact")
    measure = measures()[form]
    found = states(both, engine, decoder, measure)
    order = np.array([4, 2, 0, 1, 3])
    np.testing.assert_allclose(states(both, engine, decoder, measure[:, order]), found, rtol=1e-10)
    dirty = measure.copy()
    dirty[0, 3:, 1:] = np.nan
    np.testing.assert_allclose(states(both, engine, decoder, dirty), found, rtol=1e-12)
    wider = np.concatenate(
        (dirty, np.where(np.arange(measure.shape[-1]) > 0, np.nan, NEVER)[None, None].repeat(3, 0)), 1
    )
    np.testing.assert_allclose(states(both, engine, decoder, wider), found, rtol=1e-10)

    def gradient(x):
        if engine == "pyro":
            leaf = torch.tensor(x, requires_grad=True)
            return torch.autograd.grad(decoder.states(leaf, made(engine, INPUTS)).square().sum(), leaf)[0].numpy()
        return np.asarray(jax.grad(lambda x: (decoder.states(x, made(engine, INPUTS)) ** 2).sum())(jnp.asarray(x)))

    clean, other = gradient(measure), gradient(dirty)
    np.testing.assert_allclose(other, clean, rtol=1e-10)
    assert (clean[0, 3:, 1:] == 0).all()
    assert (clean[1:, :, 1:] != 0).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("form", "rule"), [("draw", "exact"), ("mean", "exact"), ("mean", "reference"), ("mean", "points")]
)
def test_word_by_word_is_teacher_forced(both, engine, form, rule, tied):
    decoder, weights = decoder_of(both, engine, rule=rule, tie_embeddings=tied)
    measure = measures()[form]
    output = weights["embedding" if tied else "output"]
    wanted = states(both, engine, decoder, measure) @ output.T
    state, order = decoder.start(made(engine, measure), 3, INPUTS.shape[1]), np.arange(3)
    for step in range(INPUTS.shape[1]):
        if step == 2:
            order = np.array([2, 0, 1])
            state = tuple(part[made(engine, order)] for part in state)
        state, logits = decoder.step(state, made(engine, INPUTS[order, step]))
        np.testing.assert_allclose(both.numpy_of(logits), wanted[order, step], rtol=1e-8, atol=1e-9)


def test_the_rules_differ(both, engine):
    """Else the test of the cache could not tell them apart."""
    measure = measures()["mean"]
    one, other = (states(both, engine, decoder_of(both, engine, rule=r)[0], measure) for r in ("exact", "reference"))
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_over_plain_vectors_it_is_the_decoder_of_the_library(both, engine, norm):
    """T, the autoencoder: torch.nn.TransformerDecoderLayer, its memory biases zero, and pads of the memory hidden."""
    decoder, weights = decoder_of(both, engine, weighted=0, norm=norm)
    draw = measures()["draw"]
    draw[..., 0] = np.where(draw[..., 0] > NEVER, 0.0, NEVER)
    weights = {name: torch.as_tensor(value) for name, value in weights.items()}
    angles = np.arange(INPUTS.shape[1])[:, None] * 10_000.0 ** (-2 * np.arange(P // 2) / P)
    h = weights["embedding"][torch.as_tensor(INPUTS)] * P**0.5 + torch.as_tensor(
        np.concatenate((np.sin(angles), np.cos(angles)), -1)
    )
    mask = nn.Transformer.generate_square_subsequent_mask(INPUTS.shape[1], dtype=torch.float64)
    names = {
        "self_attn.in_proj_weight": "attention_in",
        "self_attn.in_proj_bias": "attention_in_bias",
        "self_attn.out_proj.weight": "attention_out",
        "self_attn.out_proj.bias": "attention_out_bias",
        "multihead_attn.out_proj.weight": "memory_out",
        "linear1.weight": "feedforward_in",
        "linear1.bias": "feedforward_in_bias",
        "linear2.weight": "feedforward_out",
        "linear2.bias": "feedforward_out_bias",
        "norm1.weight": "attention_norm",
        "norm1.bias": "attention_norm_bias",
        "norm2.weight": "memory_norm",
        "norm2.bias": "memory_norm_bias",
        "norm3.weight": "feedforward_norm",
        "norm3.bias": "feedforward_norm_bias",
    }
    for layer in range(2):
        module = nn.TransformerDecoderLayer(
            P, 2, 5, 0.0, "gelu", batch_first=True, norm_first=norm == "pre", dtype=torch.float64
        )
        theirs = {name: weights[f"{ours}_{layer}"] for name, ours in names.items()}
        theirs["multihead_attn.in_proj_weight"] = torch.cat(
            [weights[f"memory_{part}_{layer}"] for part in ("query", "key", "value")]
        )
        theirs |= {"multihead_attn.in_proj_bias": torch.zeros(3 * P), "multihead_attn.out_proj.bias": torch.zeros(P)}
        module.load_state_dict(theirs)
        absent = torch.as_tensor(draw[..., 0] <= NEVER)
        h = module(h, torch.as_tensor(draw[..., 1:]), tgt_mask=mask, memory_key_padding_mask=absent)
    if norm == "pre":
        h = nn.functional.layer_norm(h, (P,), weights["norm"], weights["norm_bias"])
    np.testing.assert_allclose(states(both, engine, decoder, draw), h.detach().numpy(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["draw", "mean"])
def test_pruned_is_masked_and_narrower(both, engine, form):
    decoder, _ = decoder_of(both, engine)
    measure = measures()[form]
    np.testing.assert_allclose(
        states(both, engine, decoder, pruned(measure, 1.0)), states(both, engine, decoder, measure), rtol=1e-9
    )
    found = pruned(measure, 0.6)
    assert found.shape[1] < measure.shape[1]
    masked = measure.copy()
    for row in masked:  # the heaviest, until they hold the share
        share = np.exp(row[:, 0])
        order = np.argsort(-share)
        enough = int(np.searchsorted(np.cumsum(share[order]), 0.6)) + 1
        row[order[enough:], 0] = NEVER
    np.testing.assert_allclose(states(both, engine, decoder, found), states(both, engine, decoder, masked), rtol=1e-9)


@pytest.mark.parametrize("weighted", [True, False])
def test_a_line_ends_at_its_ends(both, engine, weighted):
    decoder, _ = decoder_of(both, engine, weighted=int(weighted))
    every = measures()["mean" if weighted else "draw"]
    if not weighted:
        every[..., 0] = np.where(every[..., 0] > NEVER, 0.0, NEVER)
    start, stop = every[1], every[2]
    found = line(start, stop, np.array([0.0, 0.5, 1.0]), weighted)
    wide = states(both, engine, decoder, found)
    ends = states(both, engine, decoder, np.stack([start, start, stop]))
    np.testing.assert_allclose(wide[0], ends[0], rtol=1e-9)
    np.testing.assert_allclose(wide[2], ends[2], rtol=1e-9)
    assert np.isfinite(wide).all()


def test_long_sentences_of_a_prior_that_does_not_grow_are_finite(both, engine):
    law = both.realised(engine, DirichletProcessPrior(dim=P, increment=0.0), {})(made(engine, np.array([50] * 3)), 50)
    draws = both.numpy_of(law.sample() if engine == "pyro" else law.sample(jax.random.key(0)))
    decoder, _ = decoder_of(both, engine)
    assert np.isfinite(draws).all()
    assert np.isfinite(states(both, engine, decoder, draws)).all()
