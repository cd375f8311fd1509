"""Transformers against torch.nn's own layers, themselves, and each other across the engines."""

from __future__ import annotations

from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from guidebook.guides import PAIRS
from guidebook.guides.encoders import TransformerEncoder
from guidebook.guides.sentence_guide import SentenceGuide
from guidebook.inference import IWAE, KL
from guidebook.models.sentence_vae import SentenceModel
from guidebook.models.spec import Network
from guidebook.models.transformers import TransformerDecoder

H, F, L, HEADS, V = 8, 12, 2, 2, 9
RNG = np.random.default_rng(0)
TOKENS = np.array([[1, 4, 5, 6, 2, 0, 0], [1, 7, 2, 0, 0, 0, 0], [1, 4, 4, 8, 4, 3, 2]])
LENGTHS = np.array([5, 3, 7])
KINDS = [(norm, positions) for norm in ("pre", "post") for positions in ("rotary", "sinusoidal")]
kinds = pytest.mark.parametrize(("norm", "positions"), KINDS)
SMALL = {"hidden": H, "layers": L, "heads": HEADS, "feedforward": F, "dropout": 0.0}


def weights_of(network):
    """Biases and norms away from where they start, which would hide them."""
    return {name: array + 0.1 * RNG.normal(size=array.shape) for name, array in network.initial_weights("n", 0).items()}


def realised(engine, spec, weights=None, **sizes):
    network = Network(spec, {"vocabulary": V, **sizes})
    weights = weights_of(network) if weights is None else weights
    found = import_module(f"guidebook.engines.{engine}.networks").realise(network, weights, dtype="float64")
    if engine == "pyro":
        found.eval()
        return lambda *args: found(*map(torch.as_tensor, args)), found, weights
    return lambda *args: found(*map(jnp.asarray, args)), found, weights


def array(x):
    return x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)


def layers_of(weights, norm):
    """torch.nn's encoder layers with these weights."""
    found = []
    for layer in range(L):
        module = nn.TransformerEncoderLayer(
            H, HEADS, F, 0.0, "gelu", batch_first=True, norm_first=norm == "pre"
        ).double()
        state = {
            "self_attn.in_proj_weight": "attention_in",
            "self_attn.in_proj_bias": "attention_in_bias",
            "self_attn.out_proj.weight": "attention_out",
            "self_attn.out_proj.bias": "attention_out_bias",
            "linear1.weight": "feedforward_in",
            "linear1.bias": "feedforward_in_bias",
            "linear2.weight": "feedforward_out",
            "linear2.bias": "feedforward_out_bias",
            "norm1.weight": "attention_norm",
            "norm1.bias": "attention_norm_bias",
            "norm2.weight": "feedforward_norm",
            "norm2.bias": "feedforward_norm_bias",
        }
        module.load_state_dict({theirs: torch.as_tensor(weights[f"{ours}_{layer}"]) for theirs, ours in state.items()})
        found.append(module.train())
    return found


def positional(steps):
    """sin and cos of t · 10000^(−2i / H)."""
    angles = np.arange(steps)[:, None] * 10_000.0 ** (-2 * np.arange(H // 2) / H)
    return np.concatenate((np.sin(angles), np.cos(angles)), -1)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_encoder_is_the_stack_of_the_library(engine, norm):
    encode, _, weights = realised(engine, TransformerEncoder(**SMALL, norm=norm, positions="sinusoidal"))
    h = torch.as_tensor(weights["embedding"][TOKENS] * H**0.5 + positional(TOKENS.shape[1]))
    real = np.arange(TOKENS.shape[1]) < LENGTHS[:, None]
    for module in layers_of(weights, norm):
        h = module(h, src_key_padding_mask=torch.as_tensor(~real))
    if norm == "pre":
        h = nn.functional.layer_norm(h, (H,), *(torch.as_tensor(weights[name]) for name in ("norm", "norm_bias")))
    wanted = (array(h) * real[..., None]).sum(1) / LENGTHS[:, None]
    np.testing.assert_allclose(array(encode(TOKENS, LENGTHS)), wanted, rtol=1e-10)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_decoder_is_the_causal_stack_of_the_library(engine, norm):
    z = RNG.normal(size=(3, 2))
    _, decoder, weights = realised(engine, TransformerDecoder(**SMALL, norm=norm, positions="sinusoidal"), latent=2)
    h = weights["embedding"][TOKENS] * H**0.5 + (z @ weights["latent"].T)[:, None] + positional(TOKENS.shape[1])
    h, mask = torch.as_tensor(h), nn.Transformer.generate_square_subsequent_mask(TOKENS.shape[1], dtype=torch.float64)
    for module in layers_of(weights, norm):
        h = module(h, src_mask=mask)
    if norm == "pre":
        h = nn.functional.layer_norm(h, (H,), *(torch.as_tensor(weights[name]) for name in ("norm", "norm_bias")))
    made = (torch.as_tensor, jnp.asarray)[engine == "numpyro"]
    np.testing.assert_allclose(array(decoder.states(made(z), made(TOKENS))), array(h), rtol=1e-9)


@pytest.mark.usefixtures("_float64")
def test_rotary_scores_are_of_distances(engine):
    """qᵀk of turned vectors is that of one turned by their distance, and turns keep the norm."""
    _, decoder, _ = realised(engine, TransformerDecoder(**SMALL), latent=0)
    made = (torch.as_tensor, jnp.asarray)[engine == "numpyro"]
    q, k = RNG.normal(size=(2, H // HEADS))
    shape = (1, 1, 6, -1) if engine == "pyro" else (1, 6, 1, -1)

    def turned(x):
        every = np.broadcast_to(x, (6, H // HEADS)).reshape(shape)
        return array(decoder._turned(made(every.copy()), made(np.arange(6)))).reshape(6, -1)

    scores = turned(q) @ turned(k).T
    for distance in range(-5, 6):
        along = np.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], rtol=1e-10)
    assert np.ptp(scores[:, 0]) > 1e-3
    np.testing.assert_allclose(np.linalg.norm(turned(q), axis=-1), np.linalg.norm(q), rtol=1e-12)


@pytest.mark.usefixtures("_float64")
@kinds
def test_word_by_word_is_teacher_forced(engine, norm, positions):
    """Cached keys and values, in any order of the rows."""
    z = RNG.normal(size=(3, 2))
    _, decoder, weights = realised(engine, TransformerDecoder(**SMALL, norm=norm, positions=positions), latent=2)
    made = (torch.as_tensor, jnp.asarray)[engine == "numpyro"]
    wanted = array(decoder.states(made(z), made(TOKENS))) @ weights["embedding"].T
    state, order = decoder.start(made(z), 3, TOKENS.shape[1]), np.arange(3)
    for step in range(TOKENS.shape[1]):
        if step == 4:
            order = np.array([2, 0, 1])
            state = tuple(part[made(order)] for part in state)
        state, logits = decoder.step(state, made(TOKENS[order, step]))
        np.testing.assert_allclose(array(logits), wanted[order, step], rtol=1e-9)


@pytest.mark.usefixtures("_float64")
def test_particles_are_rows(engine):
    z = RNG.normal(size=(4, 3, 2))
    _, decoder, _ = realised(engine, TransformerDecoder(**SMALL), latent=2)
    made = (torch.as_tensor, jnp.asarray)[engine == "numpyro"]
    found = array(decoder.states(made(z), made(TOKENS)))
    for number, one in enumerate(z):
        np.testing.assert_allclose(found[number], array(decoder.states(made(one), made(TOKENS))), rtol=1e-10)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_pads_change_nothing(engine, pooling):
    encode, _, _ = realised(engine, TransformerEncoder(**SMALL, pooling=pooling))
    found = array(encode(TOKENS, LENGTHS))
    other = np.where(np.arange(TOKENS.shape[1]) < LENGTHS[:, None], TOKENS, 5)
    np.testing.assert_allclose(array(encode(other, LENGTHS)), found, rtol=1e-12)
    for row, length in enumerate(LENGTHS):
        alone = array(encode(TOKENS[row : row + 1, :length], LENGTHS[row : row + 1]))
        np.testing.assert_allclose(found[row], alone[0], rtol=1e-10)


def pair_of(norm="pre", positions="rotary", dropout=0.0):
    small = SMALL | {"norm": norm, "positions": positions, "dropout": dropout}
    model = SentenceModel(decoder=TransformerDecoder(**small))
    guide = SentenceGuide(encoder=TransformerEncoder(**small))
    return PAIRS["sentence_vae"], PAIRS["sentence_vae"].realisable(model, guide, V)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("norm", "positions", "divergence"), [*((*kind, KL()) for kind in KINDS), (*KINDS[0], IWAE(particles=3))]
)
def test_both_engines_have_the_same_bounds_and_gradients(both, norm, positions, divergence):
    pair, networks = pair_of(norm, positions)
    batch = both.sentences([4, 5, 6], [7], [8, 4, 4, 3, 5])
    shape = (3, 3) if divergence.particles > 1 else (3,)
    noise = {"z": np.random.default_rng(3).normal(size=(*shape, SentenceModel().prior.dim))}
    found = []
    for engine in both.engines:
        replayed = both.replaying(engine, pair, noise)
        program = both.program(engine, replayed, networks, data_size=3, divergence=divergence)
        state = program.init(batch)
        found.append(both.gradients(program, state, batch))
    (ours, one), (theirs, other) = found
    assert one["objective"] == pytest.approx(other["objective"], rel=1e-8)
    for name, gradient in ours.items():
        np.testing.assert_allclose(gradient, theirs[name], rtol=1e-6, atol=1e-8, err_msg=name)


def test_dropout_is_of_training_alone(both, engine):
    pair, networks = pair_of(dropout=0.5)
    batch = both.sentences([4, 5, 6], [7])
    program = both.program(engine, pair, networks, data_size=2, dtype="float32")
    state = program.init(batch)
    one, other = (program.terms(state, batch, seed=0).elbo() for _ in range(2))
    np.testing.assert_array_equal(one, other)
    _, first = program.step(state, [batch], both.control(0, 1.0, 0.0))
    _, second = program.step(program.init(batch), [batch], both.control(1, 1.0, 0.0))
    assert float(first["objective"]) != pytest.approx(float(second["objective"]), rel=1e-4)


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="hidden = 10 does not divide into 4 heads of an even width"):
        TransformerDecoder(hidden=10, heads=4)
