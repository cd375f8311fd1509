"""The likelihood of a sentence against log_softmax and gather, its gradients, its samples and its memory."""

from collections import Counter

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from scipy.stats import chi2

from guidebook.engines.numpyro import distributions
from guidebook.engines.numpyro.distributions import TokenSequence, token_log_prob
from guidebook.engines.numpyro.networks import realise
from guidebook.models.decoders import GRUDecoder, LSTMDecoder
from guidebook.models.errors import BadInput
from guidebook.models.spec import Network

pytestmark = pytest.mark.usefixtures("_float64")
B, T, V, H, S = 4, 5, 13, 6, 3
LENGTHS = np.array([5, 1, 3, 0])
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


@pytest.fixture(params=[(B,), (S, B)], ids=["rows", "particles"])
def case(request):
    rng = np.random.default_rng(0)
    states, weight = (jnp.asarray(rng.standard_normal(shape)) for shape in ((*request.param, T, H), (V, H)))
    return states, weight, rng.integers(0, V, (B, T)), LENGTHS


def naive(states, weight, targets, lengths):
    """The composition that keeps batch × time × vocabulary."""
    table = jax.nn.log_softmax(states @ weight.T)
    targets = jnp.broadcast_to(targets, states.shape[:-1])
    per_token = jnp.take_along_axis(table, targets[..., None], -1)[..., 0]
    return (per_token * (jnp.arange(states.shape[-2]) < lengths[..., None])).sum(-1)


def gradients_of(function):
    """(states, weight, targets, lengths, upstream) to the value and both gradients, compiled."""

    @jax.jit
    def found(states, weight, targets, lengths, upstream):
        value, back = jax.vjp(lambda s, w: function(s, w, targets, lengths), states, weight)
        return value, back(upstream)

    return found


def close(ours, reference, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **(tolerance or CLOSE)), ours, reference)


def upstreams(shape):
    """Upstream gradients: the same for all, of both signs, with zeros, and for one row alone."""
    one, mixed = np.zeros(shape), np.random.default_rng(1).standard_normal(shape)
    one[..., 0] = 2.5
    return np.full(shape, -1 / B), np.ones(shape), mixed, mixed.clip(0), one, np.zeros(shape)


@pytest.mark.parametrize("tile", [1, 40, 2**20], ids=["a row a tile", "a few rows a tile", "one tile"])
def test_value_and_gradients_are_exact(tile, case, monkeypatch):
    monkeypatch.setattr(distributions, "TILE", tile)
    ours, reference = gradients_of(lambda *data: token_log_prob(*data)), gradients_of(naive)
    for upstream in upstreams(case[0].shape[:-2]):
        close(ours(*case, upstream), reference(*case, upstream))
    close(token_log_prob(*case), naive(*case))


def test_upstream_gradients_may_differ_from_word_to_word(case):
    """What flows into a row that does not count changes nothing."""
    states, weight, targets, _ = case
    for lengths in np.eye(B, dtype=int)[:2] * T:
        upstream = np.random.default_rng(2).standard_normal(states.shape[:-2])
        close(
            gradients_of(token_log_prob)(states, weight, targets, lengths, upstream),
            gradients_of(naive)(states, weight, targets, lengths, upstream),
        )


def test_rows_of_a_map_are_rows_of_a_batch(case):
    """Under vmap, with another upstream gradient for each."""
    states, weight, targets, lengths = case
    many = jnp.stack([states, states * 2])
    upstream = jnp.asarray(np.random.default_rng(3).standard_normal(many.shape[:-2]))
    found = jax.vmap(lambda s, u: gradients_of(token_log_prob)(s, weight, targets, lengths, u))(many, upstream)
    for index in range(2):
        wanted = gradients_of(naive)(many[index], weight, targets, lengths, upstream[index])
        close(jax.tree.map(lambda x, i=index: x[i], found), wanted)


@pytest.mark.parametrize("size", [1e-3, 1.0, 60.0, 3000.0])
def test_logits_of_any_size_stay_finite(size):
    """Far beyond what exp can hold in float32, in either direction."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((B, T, H)).astype("float32")
    weight = np.abs(rng.standard_normal((V, H)) * size / H**0.5).astype("float32")
    targets = rng.integers(0, V, (B, T))
    for sign in (1, -1):
        tensors = (jnp.asarray(np.abs(states) * sign), jnp.asarray(weight))
        value, found = gradients_of(token_log_prob)(*tensors, targets, LENGTHS, jnp.ones(B, "float32"))
        exact = [tensor.astype("float64") for tensor in tensors]
        reference, wanted = gradients_of(naive)(*exact, targets, LENGTHS, jnp.ones(B))
        close(value, reference, rtol=2e-5, atol=1e-4 * max(1, size / 60))
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == jnp.float32
            assert jnp.linalg.norm(one - other) <= 1e-3 * jnp.linalg.norm(other) + 1e-6


def test_no_counted_token_gives_zero(case):
    states, weight, targets, lengths = case
    found = gradients_of(token_log_prob)(states, weight, targets, 0 * lengths, jnp.ones(states.shape[:-2]))
    assert all((x == 0).all() for x in jax.tree.leaves(found))


def test_padded_states_may_hold_anything(case):
    states, weight, *data = case
    spoilt = jnp.where((jnp.arange(T) >= LENGTHS[:, None])[..., None], jnp.nan, states)
    value, gradients = gradients_of(token_log_prob)(spoilt, weight, *data, jnp.ones(states.shape[:-2]))
    close(value, naive(states, weight, *data))
    close(gradients, gradients_of(naive)(states, weight, *data, jnp.ones(states.shape[:-2]))[1])


def test_int32_targets_are_ids_too(case):
    states, weight, targets, lengths = case
    ours = token_log_prob(states, weight, targets.astype("int32"), lengths.astype("int32"))
    close(ours, naive(states, weight, targets, lengths))


def test_bfloat16_is_close_in_value_and_gradient():
    rng = np.random.default_rng(0)
    states, weight = rng.standard_normal((8, 20, 64)), 0.1 * rng.standard_normal((500, 64))
    data = states.astype("float32"), weight.astype("float32"), rng.integers(0, 500, (8, 20)), np.full(8, 20)

    def rounded(*data):
        return token_log_prob(*data, precision="bfloat16")

    for upstream in (np.ones(8, "float32"), np.arange(8).astype("float32")):
        exact, wanted = gradients_of(token_log_prob)(*data, upstream)
        value, found = gradients_of(rounded)(*data, upstream)
        assert (jnp.abs(exact - value) / jnp.abs(exact)).max() < 1e-3
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == jnp.float32
            assert 0 < jnp.linalg.norm(one - other) < 0.02 * jnp.linalg.norm(other)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_far_below_batch_time_vocabulary(precision):
    """32 × 22 × 50,000 logits are 141 MB, twice that with their gradient; W's gradient is 13 MB. Not run."""
    with jax.enable_x64(False):
        arrays = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((32, 22, 64), (50_000, 64))]
        words = [jax.ShapeDtypeStruct(shape, "int32") for shape in ((32, 22), (32,))]

        def loss(function, *data):
            return function(*data).mean()

        def ours(*data):
            return token_log_prob(*data, precision=precision)

        found, plain = (
            jax.jit(jax.grad(lambda *data, f=f: loss(f, *data), (0, 1))).lower(*arrays, *words).compile()
            for f in (ours, naive)
        )
    logits = 32 * 22 * 50_000 * 4
    assert plain.memory_analysis().temp_size_in_bytes > logits
    assert found.memory_analysis().temp_size_in_bytes < 0.6 * logits


def decoder_of(kind=LSTMDecoder, latent=2, vocabulary=5, scale=1.5, dtype="float64"):
    spec = kind(embedding=3, hidden=4, dropout=0.0)
    network = Network(spec, {"vocabulary": vocabulary, "latent": latent})
    rng = np.random.default_rng(3)
    layout = network.spec.layout(**network.sizes)
    return realise(network, {n: scale * rng.standard_normal(w.shape) for n, w in layout.items()}, dtype=dtype)


def sequence(decoder, z, rows, steps):
    return decoder(z, np.zeros((rows, steps), int), np.full(rows, steps))


def test_shapes_and_expansion():
    rng = np.random.default_rng(0)
    x = sequence(decoder_of(), rng.standard_normal((2, 2)), 2, 4)
    value, many = rng.integers(0, 5, (2, 4)), rng.integers(0, 5, (3, 2, 4))
    assert (x.batch_shape, x.event_shape, x.has_rsample, x.is_discrete) == ((2,), (4,), False, True)
    wide = x.expand((3, 2))
    assert (wide.batch_shape, wide.event_shape) == ((3, 2), (4,))
    close(wide.log_prob(many), jnp.stack([x.log_prob(one) for one in many]))
    assert wide.sample(jax.random.key(0)).shape == (3, 2, 4)
    assert x.sample(jax.random.PRNGKey(0), (6,)).shape == (6, 2, 4)
    close(x.log_prob(many), wide.log_prob(many))
    close(x.to_event(1).log_prob(value), x.log_prob(value).sum())
    assert x.mask(jnp.array([True, False])).log_prob(value)[1] == 0


def test_it_is_a_tree():
    """As an argument and a result of a compiled function, with its decoder."""
    x = sequence(decoder_of(), np.ones((2, 2)), 2, 4)
    value, key = np.ones((2, 4), int), jax.random.key(0)
    same = jax.jit(lambda x: x)(x)
    close(same.log_prob(value), x.log_prob(value))
    assert jnp.array_equal(same.sample(key), x.sample(key))


def test_wrong_shapes_are_refused_in_a_sentence():
    x = sequence(decoder_of(), np.ones((2, 2)), 2, 4)
    with pytest.raises(BadInput, match="do not end in T = 4 tokens"):
        x.log_prob(np.zeros((2, 3), int))
    with pytest.raises(BadInput, match="do not fit a batch"):
        x.log_prob(np.zeros((3, 4), int))
    with pytest.raises(BadInput, match="do not fit a projection"):
        TokenSequence(np.zeros((2, 4, 3)), np.zeros((5, 4)), np.ones(2))
    with pytest.raises(BadInput, match="without its decoder"):
        TokenSequence(np.zeros((2, 4, 3)), np.zeros((5, 3)), np.ones(2)).sample(jax.random.key(0))


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
    z = np.array([[0.5, -1.0]]) if latent else None
    sentences = sentences_of(steps, vocabulary)
    ids = np.array([s + (0,) * (steps - len(s)) for s in sentences])
    inputs = np.concatenate([np.full((len(ids), 1), distributions.BOS), ids[:, :-1]], 1)
    lengths = np.array([len(s) for s in sentences])
    latents = None if z is None else np.repeat(z, len(ids), 0)
    exact = np.exp(decoder(latents, inputs, lengths).log_prob(ids))
    assert abs(exact.sum() - 1) < 1e-9
    drawn = np.asarray(sequence(decoder, z, 1, steps).sample(jax.random.key(0), (count,)))[:, 0]
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) <= set(map(tuple, ids.tolist()))
    observed = np.array([counts[tuple(row)] for row in ids.tolist()])
    rare = exact * count < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        exact = np.append(exact[~rare], exact[rare].sum())
    statistic = ((observed - count * exact) ** 2 / (count * exact)).sum()
    assert statistic < chi2.isf(1e-6, len(exact) - 1)


class Ending(eqx.Module):
    """Row n ends with its word n + 1; until then it says 3. Reports each step it is asked for."""

    report: object = eqx.field(static=True)

    def start(self, z, rows, steps):
        return (jnp.zeros(rows, int),)

    def step(self, state, tokens):
        jax.debug.callback(self.report, tokens)
        word = jnp.where(jnp.arange(len(tokens)) <= state[0], distributions.EOS, 3)
        return (state[0] + 1,), jnp.where(jnp.arange(5) == word[:, None], 0.0, -jnp.inf)


def test_sampling_stops_once_all_rows_have_ended():
    calls = []
    x = TokenSequence(jnp.zeros((3, 9, 4)), jnp.zeros((5, 4)), np.full(3, 9), decoder=Ending(lambda x: calls.append(x)))
    assert x.sample(jax.random.key(0)).tolist() == [[2] + [0] * 8, [3, 2] + [0] * 7, [3, 3, 2] + [0] * 6]
    jax.effects_barrier()
    assert len(calls) == 3
    assert calls[0].tolist() == [distributions.BOS] * 3


@pytest.mark.parametrize("loss", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("particles", [1, 3])
def test_stock_svi_runs_on_it(loss, particles):
    decoder, rng = decoder_of(), np.random.default_rng(0)
    inputs, targets = rng.integers(0, 5, (2, 4, 6))
    lengths, real = np.array([6, 2, 3, 1]), np.arange(4) < 3

    def rows():
        return numpyro.plate("sentences", 40, subsample_size=4)

    def model():
        with rows(), numpyro.handlers.mask(mask=real):
            z = numpyro.sample("z", numpyro.distributions.Normal(jnp.zeros((4, 2)), 1.0).to_event(1))
            numpyro.sample("x", decoder(z, inputs, lengths), obs=targets)

    def guide():
        loc = numpyro.param("loc", jnp.zeros((4, 2)))
        with rows(), numpyro.handlers.mask(mask=real):
            numpyro.sample("z", numpyro.distributions.Normal(loc, 0.1).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(0.05), loss(num_particles=particles))
    losses = svi.run(jax.random.key(0), 40, progress_bar=False).losses
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
