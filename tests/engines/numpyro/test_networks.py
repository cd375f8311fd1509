"""The NumPyro networks against plain NumPy loops, in float64."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from guidebook.engines.numpyro.networks import realise
from guidebook.engines.numpyro.recurrence import gru, lstm
from guidebook.guides.encoders import GRUEncoder, LSTMEncoder
from guidebook.guides.posteriors import DiagonalNormal
from guidebook.models.decoders import GRUDecoder, LSTMDecoder
from guidebook.models.errors import BadInput
from guidebook.models.mlp import MLP
from guidebook.models.priors import StandardNormal
from guidebook.models.spec import Network

pytestmark = pytest.mark.usefixtures("_float64")
B, T, V, E, H, Z, S = 3, 5, 11, 4, 6, 2, 3
LENGTHS = np.array([5, 2, 4])
DECODERS = {"lstm": LSTMDecoder, "gru": GRUDecoder}
ENCODERS = {"lstm": LSTMEncoder, "gru": GRUEncoder}
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.standard_normal((S, B, Z)), rng.integers(0, V, (B, T)), rng.integers(0, V, (B, T))


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


def close(ours, reference, **tolerance):
    np.testing.assert_allclose(ours, reference, **(tolerance or CLOSE))


def all_close(ours, reference, **tolerance):
    jax.tree.map(partial(close, **tolerance), ours, reference)


@kinds
def test_parameters_are_the_layout_by_name(kind):
    for network in (
        Network(DECODERS[kind](embedding=E, hidden=H), {"vocabulary": V, "latent": Z}),
        Network(ENCODERS[kind](embedding=E, hidden=H), {"vocabulary": V}),
        Network(DiagonalNormal(), {"features": H, "latent": Z}),
        Network(MLP(inputs=3, outputs=2)),
    ):
        weights = network.initial_weights("net", 0)
        module = realise(network, weights, dtype="float64")
        assert len(jax.tree.leaves(module)) == len(weights)
        assert module.weights.keys() == weights.keys()
        all_close(module.weights, weights)
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(realise(network, weights)))


def test_a_framework_module_is_used_as_it_is():
    module = eqx.nn.Linear(2, 3, key=jax.random.key(0))
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
    with jax.enable_x64(False), pytest.raises(BadInput, match="jax_enable_x64"):
        realise(network, right, dtype="float64")


@kinds
@pytest.mark.parametrize("latent", [Z, 0])
def test_decoder_is_the_plain_loop(kind, latent, data):
    z, inputs, targets = data
    decoder, w = decoder_of(kind, latent)
    z = z[0] if latent else None
    states = states_of_numpy(kind, w, z, inputs)
    close(decoder.states(z, inputs), states)
    logits = states @ w["output"].T
    table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = [sum(table[b, t, targets[b, t]] for t in range(LENGTHS[b])) for b in range(B)]
    x = decoder(z, inputs, LENGTHS)
    assert (x.batch_shape, x.event_shape) == ((B,), (T,))
    close(x.log_prob(targets), expected)


@kinds
def test_tied_embeddings_project_to_the_vocabulary(kind, data):
    z, inputs, targets = data
    decoder, w = decoder_of(kind, hidden=E, tie_embeddings=True)
    assert "output" not in w
    log_prob = decoder(z[0], inputs, LENGTHS).log_prob(targets)
    table = jax.nn.log_softmax(decoder.states(z[0], inputs) @ w["embedding"].T)
    per_token = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
    close(log_prob, (per_token * (np.arange(T) < LENGTHS[:, None])).sum(-1))


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
    close(encoder(tokens, LENGTHS), states)


@kinds
def test_time_loop_has_exact_gradients(kind):
    """Against central differences, with two particles that share the inputs."""
    rng = np.random.default_rng(0)
    gates = {"lstm": 4, "gru": 3}[kind] * 3
    shapes = [(4, 2, gates), (2, 2, gates), (2, 2, 3)]
    shapes += [(2, 2, 3), (gates, 3)] if kind == "lstm" else [(gates, 3), (gates,)]
    check_grads({"lstm": lstm, "gru": gru}[kind], [rng.standard_normal(shape) for shape in shapes], 1, ["rev"])


@kinds
def test_gradients_reach_every_parameter_exactly(kind, data):
    """Against the gradient of the decoder written as a plain scan over log_softmax."""
    z, inputs, targets = data
    decoder, weights = decoder_of(kind)

    def cell(w, x, h):
        projected, recurrent = x @ w["weight_ih"].T + w["bias_ih"], h[0] @ w["weight_hh"].T
        if kind == "lstm":
            i, f, g, o = jnp.split(projected + recurrent, 4, -1)
            c = jax.nn.sigmoid(f) * h[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c
        xr, xz, xn = jnp.split(projected, 3, -1)
        hr, hz, hn = jnp.split(recurrent + w["bias_hh"], 3, -1)
        r, update = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        return ((1 - update) * jnp.tanh(xn + r * hn) + update * h[0],)

    def plain(w, z):
        start = z @ w["initial"].T
        state, total = (jnp.tanh(start), start)[: 2 if kind == "lstm" else 1], 0.0
        for t in range(T):
            state = cell(w, jnp.concatenate([w["embedding"][inputs[:, t]], z], -1), state)
            table = jax.nn.log_softmax(state[0] @ w["output"].T)
            total += table[np.arange(B), targets[:, t]] * (t < LENGTHS)
        return (total * jnp.array([1.0, -2.0, 0.5])).sum()

    def ours(decoder, z):
        return (decoder(z, inputs, LENGTHS).log_prob(targets) * jnp.array([1.0, -2.0, 0.5])).sum()

    wanted = jax.jit(jax.grad(plain, (0, 1)))({k: jnp.asarray(v) for k, v in weights.items()}, jnp.asarray(z[0]))
    found = jax.jit(jax.grad(ours, (0, 1)))(decoder, jnp.asarray(z[0]))
    all_close((found[0].weights, found[1]), wanted, rtol=1e-9, atol=1e-10)


@kinds
def test_padding_changes_nothing(kind, data):
    z, inputs, targets = data
    networks = decoder_of(kind)[0], encoder_of(kind)[0]
    longer = [np.pad(ids, ((0, 0), (0, 4))) for ids in (inputs, targets)]
    behind = np.arange(T + 4) >= LENGTHS[:, None]
    scrambled = [np.where(behind, 7, ids) for ids in longer]

    def value(networks, inputs, targets):
        decoder, encoder = networks
        log_prob = decoder(z[0], inputs, LENGTHS).log_prob(targets)
        found = jnp.concatenate([log_prob, encoder(inputs, LENGTHS).ravel()])
        return (found**2).sum(), found

    gradient = jax.jit(jax.grad(value, has_aux=True))
    reference = gradient(networks, inputs, targets)
    for i, x in longer, scrambled:
        all_close(gradient(networks, i, x), reference, rtol=1e-9, atol=1e-9)


@kinds
def test_rows_do_not_see_each_other(kind, data):
    z, inputs, targets = data
    decoder, encoder = decoder_of(kind)[0], encoder_of(kind)[0]
    log_prob = jax.jit(jax.jacrev(lambda z: decoder(z, inputs, LENGTHS).log_prob(targets)))
    sensitivity = log_prob(jnp.asarray(z[0]))
    for row in range(B):
        assert jnp.abs(sensitivity[row, row]).min() > 0
        assert jnp.abs(jnp.delete(sensitivity[row], row, axis=0)).max() == 0
    changed = np.concatenate([inputs[:1], (inputs[1:] + 1) % V])
    assert jnp.array_equal(encoder(changed, LENGTHS)[0], encoder(inputs, LENGTHS)[0])


@kinds
@pytest.mark.parametrize("edited", range(T))
def test_states_depend_on_the_past_and_on_z(kind, edited, data):
    z, inputs, _ = data
    decoder, _ = decoder_of(kind)
    states = decoder.states(z[0], inputs)
    changed = inputs.copy()
    changed[:, edited] = (changed[:, edited] + 1) % V
    after = decoder.states(z[0], changed)
    assert jnp.array_equal(after[:, :edited], states[:, :edited])
    assert (after[:, edited:] != states[:, edited:]).any(-1).all()
    assert (decoder.states(z[1], inputs) != states).any(-1).all()


@kinds
def test_particles_are_a_loop_over_particles(kind, data):
    z, inputs, targets = data
    decoder, _ = decoder_of(kind)
    assert decoder(z, inputs, LENGTHS).batch_shape == (S, B)
    for states, one in zip(decoder(z, inputs, LENGTHS).states, z, strict=True):
        close(states, decoder.states(one, inputs))
    weighting = jnp.linspace(0.5, 2, S * B).reshape(S, B)

    def together(decoder):
        return (decoder(z, inputs, LENGTHS).log_prob(targets) * weighting).sum()

    def one_by_one(decoder):
        rows = jax.lax.map(lambda one: decoder(one, inputs, LENGTHS).log_prob(targets), jnp.asarray(z))
        return (rows * weighting).sum()

    def mapped(decoder):
        rows = jax.vmap(lambda one: decoder(one, inputs, LENGTHS).log_prob(targets))(jnp.asarray(z))
        return (rows * weighting).sum()

    reference = jax.jit(jax.value_and_grad(one_by_one))(decoder)
    all_close(jax.jit(jax.value_and_grad(together))(decoder), reference)
    all_close(jax.jit(jax.value_and_grad(mapped))(decoder), reference)


@kinds
@pytest.mark.parametrize("latent", [Z, 0])
def test_step_by_step_is_teacher_forcing(kind, latent, data):
    z, inputs, _ = data
    decoder, w = decoder_of(kind, latent)
    z = z[0] if latent else None
    states = decoder.states(z, inputs)
    state = decoder.start(z, B, 16)
    assert all(len(part) == B for part in state)
    for t in range(T):
        state, logits = decoder.step(state, inputs[:, t])
        close(state[0], states[:, t])
        close(logits, states[:, t] @ w["output"].T)


def test_one_latent_starts_many_rows(data):
    decoder, _ = decoder_of("lstm")
    many, one = decoder.start(data[0][0][:1], 4, 16), decoder.start(data[0][0][:1], 1, 16)
    for ours, theirs in zip(many, one, strict=True):
        assert len(ours) == 4
        close(ours, jnp.broadcast_to(theirs, ours.shape))


def test_latents_of_another_shape_are_refused(data):
    decoder, _ = decoder_of("lstm")
    with pytest.raises(BadInput, match="latents of 2 dimensions, not 3"):
        decoder.states(np.zeros((B, 3)), data[1])
    with pytest.raises(BadInput, match="with B = 3"):
        decoder.states(np.zeros((B + 1, Z)), data[1])


@pytest.mark.parametrize("key", [jax.random.key, jax.random.PRNGKey], ids=["typed key", "raw key"])
def test_dropout_keeps_the_expectation_and_is_off_in_evaluation(key, data):
    """Each of H · B · T mean outputs within 6 standard errors: a false alarm in 5 million runs."""
    z, inputs, _ = data
    decoder, _ = decoder_of("lstm", dropout=0.25)
    many = jnp.broadcast_to(z[:1], (4000, B, Z))
    plain = decoder(z[0], inputs, LENGTHS).states
    assert jnp.array_equal(decoder.states(z[0], inputs), plain)
    dropped = decoder(many, inputs, LENGTHS, key=key(0)).states
    assert jnp.array_equal(dropped, decoder(many, inputs, LENGTHS, key=key(0)).states)
    assert not jnp.array_equal(dropped, decoder(many, inputs, LENGTHS, key=key(1)).states)
    kept = decoder.states(many[:1], inputs, key=jax.random.split(key(0))[0])[0]
    error = dropped.std(0) / 4000**0.5
    assert (jnp.abs(dropped.mean(0) - kept) < 6 * error + 1e-12).all()
    share = (dropped == 0).mean()
    assert abs(share - 0.25) < 6 * (0.25 * 0.75 / dropped.size) ** 0.5


def test_embeddings_are_dropped_too(data):
    """A state of an input dropout of one half: the mean of the gates' projections is the plain one."""
    z, inputs, _ = data
    decoder, _ = decoder_of("lstm", dropout=0.5)
    found = jax.vmap(lambda key: decoder._projected(inputs, 0.5, key))(jax.random.split(jax.random.key(0), 4000))
    error = found.std(0) / 4000**0.5
    assert (jnp.abs(found.mean(0) - decoder._projected(inputs)) < 6 * error + 1e-12).all()
    assert not jnp.array_equal(decoder.states(z[0], inputs, key=jax.random.key(0)), decoder.states(z[0], inputs))


def test_outputs_drop_independently_per_particle_and_inputs_once(data):
    z, inputs, _ = data
    decoder, _ = decoder_of("lstm", dropout=0.5)
    states = decoder(jnp.broadcast_to(z[:1], (2, B, Z)), inputs, LENGTHS, key=jax.random.key(0)).states
    assert ((states[0] == 0) != (states[1] == 0)).any()
    both = (states != 0).all(0)
    assert jnp.array_equal(states[0][both], states[1][both])


def test_posterior_is_the_normal_of_its_head():
    network = Network(DiagonalNormal(), {"features": H, "latent": Z})
    weights = weights_of(network)
    posterior = realise(network, weights, dtype="float64")
    h = np.random.default_rng(0).standard_normal((B, H))
    q = posterior(h)
    assert (q.batch_shape, q.event_shape) == ((B,), (Z,))
    loc, log_variance = np.split(h @ weights["weight"].T, 2, -1)
    close(q.base_dist.loc, loc)
    close(q.base_dist.scale, np.exp(log_variance / 2))


def test_prior_is_standard_normal():
    prior = realise(Network(StandardNormal(dim=Z)), {}, dtype="float64")()
    assert (prior.batch_shape, prior.event_shape) == ((), (Z,))
    z = np.random.default_rng(0).standard_normal((4, Z))
    close(prior.log_prob(z), -0.5 * (z**2).sum(-1) - Z / 2 * np.log(2 * np.pi))


@pytest.mark.parametrize("activation", ["tanh", "relu", "softplus"])
def test_mlp_is_its_equation(activation):
    network = Network(MLP(inputs=3, outputs=2, hidden=(5, 4), activation=activation))
    w = weights_of(network)
    function = {
        "tanh": np.tanh,
        "relu": lambda x: np.maximum(x, 0),
        "softplus": lambda x: np.log1p(np.exp(x)),
    }
    x = np.random.default_rng(0).standard_normal((2, 6, 3))
    expected = x
    for layer in range(3):
        expected = (function[activation](expected) if layer else expected) @ w[f"weight_{layer}"].T
        expected = expected + w[f"bias_{layer}"]
    close(realise(network, w, dtype="float64")(x), expected)


@kinds
def test_bfloat16_products_stay_close_and_float32(kind, data):
    z, inputs, targets = data
    network = Network(DECODERS[kind](embedding=E, hidden=H, dropout=0.0), {"vocabulary": V, "latent": Z})

    @jax.jit
    @jax.value_and_grad
    def value(decoder):
        return decoder(z[0].astype("float32"), inputs, LENGTHS).log_prob(targets).sum()

    found = [
        value(realise(network, weights_of(network, scale=0.3), precision=precision))
        for precision in ("float32", "bfloat16")
    ]
    exact, rounded = ([value, *jax.tree.leaves(gradient)] for value, gradient in found)
    for one, other in zip(exact, rounded, strict=True):
        assert one.dtype == other.dtype == jnp.float32
        assert jnp.linalg.norm(one - other) <= 0.03 * jnp.linalg.norm(one)
    assert not jnp.array_equal(exact[-1], rounded[-1])
