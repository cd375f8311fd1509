"""The Pyro networks against plain NumPy loops, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from guidebook.engines.pyro import networks
from guidebook.engines.pyro.dropout import dropped
from guidebook.engines.pyro.networks import realise
from guidebook.guides.encoders import GRUEncoder, LSTMEncoder
from guidebook.guides.posteriors import DiagonalNormal
from guidebook.models.decoders import GRUDecoder, LSTMDecoder
from guidebook.models.errors import BadInput
from guidebook.models.mlp import MLP
from guidebook.models.spec import Network

torch.set_num_threads(1)
B, T, V, E, H, Z, S = 3, 5, 11, 4, 6, 2, 3
LENGTHS = np.array([5, 2, 4])
DECODERS = {"lstm": LSTMDecoder, "gru": GRUDecoder}
ENCODERS = {"lstm": LSTMEncoder, "gru": GRUEncoder}
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell_of_numpy(kind, w, x, state):
    """One step of one row; `state` is (h, c) or (h,)."""
    if kind == "lstm":
        h, c = state
        i, f, g, o = np.split(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c
    (h,) = state
    xr, xz, xn = np.split(w["weight_ih"] @ x + w["bias_ih"], 3)
    hr, hz, hn = np.split(w["weight_hh"] @ h + w["bias_hh"], 3)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    return ((1 - z) * np.tanh(xn + r * hn) + z * h,)


def states_of_numpy(kind, w, z, inputs):
    """Teacher-forced decoder states (B, T, H)."""
    found = np.zeros((*inputs.shape, H))
    for b, row in enumerate(inputs):
        start = w["initial"] @ z[b] if z is not None else np.zeros(H)
        state = (np.tanh(start), start) if kind == "lstm" else (np.tanh(start),)
        for t, token in enumerate(row):
            x = w["embedding"][token] if z is None else np.concatenate([w["embedding"][token], z[b]])
            state = cell_of_numpy(kind, w, x, state)
            found[b, t] = state[0]
    return found


def weights_of(network, seed=0, scale=1.0):
    """Weights large enough that every gate matters."""
    rng = np.random.default_rng(seed)
    layout = network.spec.layout(**network.sizes)
    return {name: scale * rng.standard_normal(weight.shape) for name, weight in layout.items()}


def decoder_of(kind, latent=Z, **fields):
    spec = DECODERS[kind](embedding=E, hidden=fields.pop("hidden", H), **{"dropout": 0.0, **fields})
    network = Network(spec, {"vocabulary": V, "latent": latent})
    weights = weights_of(network)
    return realise(network, weights, dtype="float64"), weights


def encoder_of(kind):
    network = Network(ENCODERS[kind](embedding=E, hidden=H), {"vocabulary": V})
    weights = weights_of(network)
    return realise(network, weights, dtype="float64"), weights


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((S, B, Z)), rng.integers(0, V, (B, T)), rng.integers(0, V, (B, T))


def tensor(array):
    return torch.as_tensor(array)


def close(ours, reference):
    np.testing.assert_allclose(ours.detach().numpy(), reference, **CLOSE)


@kinds
def test_parameters_are_the_layout_by_name(kind):
    for network in (
        Network(DECODERS[kind](embedding=E, hidden=H), {"vocabulary": V, "latent": Z}),
        Network(ENCODERS[kind](embedding=E, hidden=H), {"vocabulary": V}),
        Network(DiagonalNormal(), {"features": H, "latent": Z}),
        Network(MLP(inputs=3, outputs=2)),
    ):
        weights = network.initial_weights("net", 0)
        parameters = dict(realise(network, weights, dtype="float64").named_parameters())
        assert list(parameters) == list(weights)
        for name, parameter in parameters.items():
            close(parameter, weights[name])


def test_a_framework_module_is_used_as_it_is():
    module = nn.Linear(2, 3)
    assert realise(Network(module), {}) is module


def test_wrong_weights_are_refused():
    network = Network(DiagonalNormal(), {"features": H, "latent": Z})
    for wrong in ({}, {"weight": np.zeros((1, 1))}, {"weight": np.zeros((2 * Z, H)), "bias": np.zeros(2)}):
        with pytest.raises(BadInput, match="weight"):
            realise(network, wrong)
    right = {"weight": np.zeros((2 * Z, H))}
    with pytest.raises(BadInput, match="dtype"):
        realise(network, right, dtype="float16")
    with pytest.raises(BadInput, match="precision"):
        realise(network, right, precision="int8")


@kinds
@pytest.mark.parametrize("latent", [Z, 0])
def test_decoder_is_the_plain_loop(kind, latent, data):
    z, inputs, targets = data
    decoder, w = decoder_of(kind, latent)
    z = z[0] if latent else None
    states = states_of_numpy(kind, w, z, inputs)
    latent_tensor = None if z is None else tensor(z)
    close(decoder.states(latent_tensor, tensor(inputs)), states)
    with torch.no_grad():
        close(decoder.states(latent_tensor, tensor(inputs)), states)
    logits = states @ w["output"].T
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [sum(table[b, t, targets[b, t]] for t in range(LENGTHS[b])) for b in range(B)]
    x = decoder(latent_tensor, tensor(inputs), tensor(LENGTHS))
    assert (x.batch_shape, x.event_shape) == ((B,), (T,))
    close(x.log_prob(tensor(targets)), expected)


@kinds
def test_tied_embeddings_project_to_the_vocabulary(kind, data):
    z, inputs, targets = data
    decoder, w = decoder_of(kind, hidden=E, tie_embeddings=True)
    assert "output" not in w
    x = decoder(tensor(z[0]), tensor(inputs), tensor(LENGTHS))
    logits = decoder.states(tensor(z[0]), tensor(inputs)) @ tensor(w["embedding"]).t()
    per_token = logits.log_softmax(-1).gather(-1, tensor(targets)[..., None])[..., 0]
    counted = torch.arange(T) < tensor(LENGTHS)[:, None]
    close(x.log_prob(tensor(targets)), (per_token * counted).sum(-1).detach().numpy())


@kinds
def test_encoder_is_the_plain_loop(kind, data):
    _, tokens, _ = data
    encoder, w = encoder_of(kind)
    states = np.zeros((B, H))
    for b in range(B):
        state = (np.zeros(H),) * (2 if kind == "lstm" else 1)
        for token in tokens[b, : LENGTHS[b]]:
            state = cell_of_numpy(kind, w, w["embedding"][token], state)
        states[b] = state[0]
    close(encoder(tensor(tokens), tensor(LENGTHS)), states)


@kinds
def test_gradients_reach_every_parameter_exactly(kind, data):
    """Directional derivative of the whole decoder by central differences."""
    z, inputs, targets = data
    decoder, _ = decoder_of(kind)

    def loss():
        return decoder(tensor(z[0]), tensor(inputs), tensor(LENGTHS)).log_prob(tensor(targets)).sum()

    parameters = list(decoder.parameters())
    gradients = torch.autograd.grad(loss(), parameters)
    generator = torch.Generator().manual_seed(0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            ends = []
            for sign in (1, -2):
                parameter.add_(direction, alpha=sign * 1e-5)
                ends.append(loss())
            parameter.add_(direction, alpha=1e-5)
        numeric = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-6, atol=1e-6)


@kinds
def test_padding_changes_nothing(kind, data):
    z, inputs, targets = data
    decoder, _ = decoder_of(kind)
    encoder, _ = encoder_of(kind)
    longer = [np.pad(ids, ((0, 0), (0, 4))) for ids in (inputs, targets)]
    scrambled = [ids.copy() for ids in longer]
    for ids in scrambled:
        for b, length in enumerate(LENGTHS):
            ids[b, length:] = 7
    values, gradients = [], []
    for i, x in ((inputs, targets), longer, scrambled):
        log_prob = decoder(tensor(z[0]), tensor(i), tensor(LENGTHS)).log_prob(tensor(x))
        code = encoder(tensor(i), tensor(LENGTHS))
        values.append(torch.cat((log_prob, code.flatten())))
        both = [*decoder.parameters(), *encoder.parameters()]
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(values[-1].square().sum(), both)]))
    for value, gradient in zip(values[1:], gradients[1:], strict=True):
        torch.testing.assert_close(value, values[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-9, atol=1e-9)


@kinds
def test_rows_do_not_see_each_other(kind, data):
    z, inputs, targets = data
    decoder, _ = decoder_of(kind)
    encoder, _ = encoder_of(kind)
    latent = tensor(z[0]).requires_grad_()
    log_prob = decoder(latent, tensor(inputs), tensor(LENGTHS)).log_prob(tensor(targets))
    codes = encoder(tensor(inputs), tensor(LENGTHS))
    changed = inputs.copy()
    changed[1:] = (changed[1:] + 1) % V
    assert torch.equal(encoder(tensor(changed), tensor(LENGTHS))[0], codes[0])
    for row in range(B):
        (gradient,) = torch.autograd.grad(log_prob[row], latent, retain_graph=True)
        others = [other for other in range(B) if other != row]
        assert gradient[row].abs().min() > 0
        assert gradient[others].abs().max() == 0


@kinds
@pytest.mark.parametrize("edited", range(T))
def test_states_depend_on_the_past_and_on_z(kind, edited, data):
    z, inputs, _ = data
    decoder, _ = decoder_of(kind)
    states = decoder.states(tensor(z[0]), tensor(inputs))
    changed = inputs.copy()
    changed[:, edited] = (changed[:, edited] + 1) % V
    after = decoder.states(tensor(z[0]), tensor(changed))
    assert torch.equal(after[:, :edited], states[:, :edited])
    assert (after[:, edited:] != states[:, edited:]).any(-1).all()
    assert (decoder.states(tensor(z[1]), tensor(inputs)) != states).any(-1).all()


@kinds
def test_particles_are_a_loop_over_particles(kind, data):
    z, inputs, targets = data
    decoder, _ = decoder_of(kind)
    together = decoder(tensor(z), tensor(inputs), tensor(LENGTHS))
    assert together.batch_shape == (S, B)
    alone = [decoder(tensor(one), tensor(inputs), tensor(LENGTHS)) for one in z]
    close(together.states, np.stack([x.states.detach().numpy() for x in alone]))
    weighting = torch.linspace(0.5, 2, S * B, dtype=torch.float64).view(S, B)
    first = (together.log_prob(tensor(targets)) * weighting).sum()
    second = sum((x.log_prob(tensor(targets)) * row).sum() for x, row in zip(alone, weighting, strict=True))
    close(first, second.detach().numpy())
    parameters = list(decoder.parameters())
    pairs = zip(torch.autograd.grad(first, parameters), torch.autograd.grad(second, parameters), strict=True)
    for one, other in pairs:
        close(one, other.numpy())


@kinds
@pytest.mark.parametrize("latent", [Z, 0])
def test_step_by_step_is_teacher_forcing(kind, latent, data):
    z, inputs, _ = data
    decoder, w = decoder_of(kind, latent)
    z = tensor(z[0]) if latent else None
    states = decoder.states(z, tensor(inputs))
    state = decoder.start(z, B, 16)
    assert all(len(part) == B for part in state)
    for t in range(T):
        state, logits = decoder.step(state, tensor(inputs[:, t]))
        close(state[0], states[:, t].detach().numpy())
        close(logits, (states[:, t] @ tensor(w["output"]).t()).detach().numpy())


def test_one_latent_starts_many_rows(data):
    z, _, _ = data
    decoder, _ = decoder_of("lstm")
    many, one = decoder.start(tensor(z[0][:1]), 4, 16), decoder.start(tensor(z[0][:1]), 1, 16)
    for ours, theirs in zip(many, one, strict=True):
        assert len(ours) == 4
        close(ours, theirs.expand_as(ours).detach().numpy())


def test_a_latent_of_another_width_is_refused(data):
    _, inputs, _ = data
    decoder, _ = decoder_of("lstm")
    with pytest.raises(BadInput, match="latents of 2 dimensions, not 3"):
        decoder.states(torch.zeros(B, 3, dtype=torch.float64), tensor(inputs))


def test_dropout_keeps_the_expectation_and_is_off_in_evaluation(data):
    """Each of H · B · T mean outputs within 6 standard errors: a false alarm in 5 million runs."""
    z, inputs, _ = data
    decoder, _ = decoder_of("lstm", dropout=0.25)
    torch.manual_seed(0)
    call = (tensor(z[:1]).expand(4000, -1, -1), tensor(inputs), tensor(LENGTHS))
    plain = decoder.eval()(*call).states[0]
    assert torch.equal(decoder(*call).states[0], plain)
    outputs = dropped(decoder.states(*call[:2]), 0.25)
    error = outputs.std(0) / 4000**0.5
    assert ((outputs.mean(0) - plain).abs() < 6 * error + 1e-12).all()


@kinds
@pytest.mark.parametrize("latent", [Z, 0])
def test_the_library_layer_that_cuda_takes_is_the_same(kind, latent, data, monkeypatch):
    z, inputs, _ = data
    decoder, _ = decoder_of(kind, latent)
    z = tensor(z) if latent else None
    found = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(networks, "_LIBRARY_DEVICES", devices)
        states = decoder.states(z, tensor(inputs))
        probe = torch.linspace(-1, 1, states.numel(), dtype=torch.float64).view_as(states)
        used = [p for name, p in decoder.named_parameters() if name != "output"]
        found.append((states, *torch.autograd.grad((states * probe).sum(), used)))
    for one, other in zip(*found, strict=True):
        close(one, other.detach().numpy())


def test_outputs_drop_independently_per_particle_and_inputs_once(data):
    z, inputs, _ = data
    decoder, _ = decoder_of("lstm", dropout=0.5)
    torch.manual_seed(0)
    states = decoder.train()(tensor(z[:1]).expand(2, -1, -1), tensor(inputs), tensor(LENGTHS)).states
    assert ((states[0] == 0) != (states[1] == 0)).any()
    both = (states != 0).all(0)
    assert torch.equal(states[0][both], states[1][both])


@kinds
def test_bfloat16_products_stay_close_and_float32(kind, data):
    z, inputs, targets = data
    network = Network(DECODERS[kind](embedding=E, hidden=H, dropout=0.0), {"vocabulary": V, "latent": Z})
    found = {}
    for precision in ("float32", "bfloat16"):
        decoder = realise(network, weights_of(network, scale=0.3), precision=precision)
        x = decoder(tensor(z[0]).float(), tensor(inputs), tensor(LENGTHS)).log_prob(tensor(targets))
        x.sum().backward()
        assert x.dtype == torch.float32
        found[precision] = (x.detach(), *(p.grad for p in decoder.parameters()))
    for exact, rounded in zip(*found.values(), strict=True):
        assert (exact - rounded).norm() <= 0.03 * exact.norm()
    assert torch.get_float32_matmul_precision() == "highest"
