"""Every path against float64 NumPy, values and gradients; NumPy's gradients come from central differences."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnano.model import backend
from jaxnano.model.backend import Scores

LENGTH, HEADS, GROUPS, DIM = 40, 4, 2, 8  # one whole chunk of queries and a shorter one
SLOPES = np.array([1.0, 0.3, 0.1, 0.03])


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def to_jax(*arrays):
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def qkv(groups=GROUPS, length=LENGTH, seed=0):
    return tuple(normal(2, length, n, DIM, seed=seed + i) for i, n in enumerate((HEADS, groups, groups)))


def attention_numpy(q, k, v, scale, window=None, softcap=None, bias_slopes=None):
    repeats = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, repeats, axis=2), np.repeat(v, repeats, axis=2)
    scores = np.einsum("blhk,bthk->bhlt", q, k) * scale
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(q.shape[1])[:, None] - np.arange(q.shape[1])[None]
    if bias_slopes is not None:
        scores = scores - bias_slopes[:, None, None] * distance
    hidden = (distance < 0) | (distance >= (window or q.shape[1]))
    weights = np.where(hidden, 0.0, np.exp(scores - scores.max(-1, keepdims=True)))
    return np.einsum("bhlt,bthk->blhk", weights / weights.sum(-1, keepdims=True), v)


def slope_along(function, arguments, directions, step=1e-5):
    """Derivative of a scalar NumPy function along directions, by central differences in float64."""
    ahead, behind = ([a + sign * step * d for a, d in zip(arguments, directions, strict=True)] for sign in (1, -1))
    return (function(*ahead) - function(*behind)) / (2 * step)


def check_gradients(function, function_numpy, arguments):
    """Compares each argument's gradient of the sum of sin(function) along a random direction."""
    grads = jax.jit(jax.grad(lambda a: jnp.sum(jnp.sin(function(*a)))))(to_jax(*arguments))
    for i, grad in enumerate(grads):
        directions = [normal(*a.shape, seed=7) * (i == j) for j, a in enumerate(arguments)]
        expected = slope_along(lambda *a: np.sin(function_numpy(*a)).sum(), arguments, directions)
        np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * directions[i]), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_linear(shape):
    x, w, b = normal(*shape), normal(5, 4), normal(4)
    np.testing.assert_allclose(backend.linear(*to_jax(x, w, b)), x @ w + b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backend.linear(*to_jax(x, w)), x @ w, rtol=1e-5, atol=1e-5)
    check_gradients(backend.linear, lambda x, w, b: x @ w + b, (x, w, b))


def test_linear_computes_in_the_dtype_of_x_and_keeps_gradients_in_that_of_the_weights():
    x, (w, b) = jnp.ones((2, 3, 5), jnp.bfloat16), to_jax(normal(5, 4), normal(4))
    assert backend.linear(x, w, b).dtype == jnp.bfloat16
    grads = jax.grad(lambda p: backend.linear(x, *p).astype(jnp.float32).sum())((w, b))
    assert [g.dtype for g in grads] == [jnp.float32] * 2


def test_cross_entropy():
    logits, targets = normal(2, 3, 7) * 5, np.random.default_rng(0).integers(0, 7, (2, 3))

    def plain(z):
        return np.log(np.exp(z).sum(-1)) - np.take_along_axis(z, targets[..., None], -1)[..., 0]

    np.testing.assert_allclose(backend.cross_entropy(*to_jax(logits), targets), plain(logits), rtol=1e-5, atol=1e-5)
    check_gradients(lambda z: backend.cross_entropy(z, jnp.asarray(targets)), plain, (logits,))


def test_cross_entropy_stands_large_logits_and_is_float32_from_bfloat16():
    logits, targets = jnp.array([[1e4, 0.0, -1e4]], jnp.bfloat16), jnp.array([2])
    nats, grad = jax.value_and_grad(lambda z: backend.cross_entropy(z, targets)[0])(logits)
    assert nats.dtype == jnp.float32 and abs(float(nats) / 2e4 - 1) < 0.01
    assert grad.dtype == jnp.bfloat16 and grad.tolist() == [[1.0, 0.0, -1.0]]


@pytest.mark.parametrize("window, softcap, slopes", list(itertools.product((None, 5, 36), (None, 2.0), (None, SLOPES))))
def test_attention_and_its_reference_match_numpy(window, softcap, slopes):
    arrays = qkv()
    options = {"window": window, "softcap": softcap, "bias_slopes": slopes}
    expected = attention_numpy(*arrays, 0.4, **options)
    if slopes is not None:
        options["bias_slopes"] = jnp.asarray(slopes, jnp.float32)
    paths = (backend.attention, backend.reference)
    for out in jax.jit(lambda *a: [path(*a, Scores(0.4, **options)) for path in paths])(*to_jax(*arrays)):
        np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize("groups, length", [(1, 1), (2, 32), (4, 33), (1, 70)])
def test_attention_of_any_grouping_and_length(groups, length):
    arrays = qkv(groups, length)
    out = jax.jit(lambda *a: backend.attention(*a, Scores(0.4)))(*to_jax(*arrays))
    np.testing.assert_allclose(out, attention_numpy(*arrays, 0.4), atol=2e-6)


@pytest.mark.parametrize("groups, window", [(4, None), (2, 5), (1, 36)])
def test_attention_gradients(groups, window):
    """Of queries, keys, values, scale, cap and slopes, all of which may be traced."""
    def traced(q, k, v, scale, cap, slopes):
        return backend.attention(q, k, v, Scores(scale, window, cap, slopes))

    def exact(q, k, v, scale, cap, slopes):
        return attention_numpy(q, k, v, scale, window, cap, slopes)

    check_gradients(traced, exact, (*qkv(groups), np.array(0.4), np.array(2.0), SLOPES))


@pytest.mark.parametrize("window", [None, 5])
def test_attention_gradients_without_options(window):
    check_gradients(lambda *a: backend.attention(*a, Scores(0.4, window)),
                    lambda *a: attention_numpy(*a, 0.4, window), qkv())


@pytest.mark.parametrize("window", [None, 1, 5, 33])
def test_causality_by_gradient(window):
    """Output i depends on keys and values i - window + 1 to i, and on no others."""
    q, k, v = to_jax(*qkv())

    @jax.jit
    def reach(i):
        grads = jax.grad(lambda kv: jnp.sum(jnp.sin(backend.attention(q, *kv, Scores(0.4, window))[:, i])))((k, v))
        return [jnp.abs(g).sum((0, 2, 3)) > 0 for g in grads]

    for i in (0, 4, 31, 32, 39):
        expected = [max(0, i - (window or LENGTH) + 1) <= j <= i for j in range(LENGTH)]
        of_keys, of_values = reach(i)
        assert of_values.tolist() == expected
        if sum(expected) > 1:  # a softmax over one key does not depend on it
            assert of_keys.tolist() == expected


def test_attention_keeps_bfloat16_and_softmax_in_float32():
    q, k, v = (a.astype(jnp.bfloat16) for a in to_jax(*qkv()))
    out = jax.jit(lambda *a: backend.attention(*a, Scores(0.4)))(q, k, v)
    exact = attention_numpy(*(np.asarray(a, np.float64) for a in (q, k, v)), 0.4)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, atol=0.02)


def test_attention_names_what_is_wrong():
    q, k, v = to_jax(*qkv(groups=3))
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3"):
        backend.attention(q, k, v, Scores(1.0))
    with pytest.raises(ValueError, match="window 0"):
        backend.attention(*to_jax(*qkv()), Scores(1.0, window=0))


def tiny_loss(params, tokens_BxL):
    """Embedding, one attention block and a tied head: all functions under test in one loss."""
    x = params["embedding"][tokens_BxL]
    heads = backend.linear(x, params["qkv"], params["bias"]).reshape(*tokens_BxL.shape, HEADS + 2 * GROUPS, DIM)
    q, k, v = jnp.split(heads, (HEADS, HEADS + GROUPS), axis=2)
    y = backend.attention(q, k, v, Scores(params["scale"], window=9, bias_slopes=params["slopes"]))
    x = x + backend.linear(y.reshape(*x.shape[:2], HEADS * DIM), params["o"])
    return backend.cross_entropy(backend.linear(x, params["embedding"].T), tokens_BxL).mean()


def tiny_params(seed=0):
    width, joint = 16, (HEADS + 2 * GROUPS) * DIM
    names = ("embedding", "qkv", "bias", "o", "slopes", "scale")
    shapes = ((24, width), (width, joint), (joint,), (HEADS * DIM, width), (HEADS,), ())
    return dict(zip(names, to_jax(*(normal(*s, seed=seed) * 0.3 for s in shapes)), strict=True))


def tokens(runs=1):
    return jnp.asarray(np.random.default_rng(0).integers(0, 24, (runs, 8, LENGTH)))


def assert_close(tree, expected, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), tree, expected)


@pytest.fixture(scope="module")
def step():
    """One compilation for all that compare with it."""
    return jax.jit(jax.value_and_grad(tiny_loss))


def test_vmap_over_runs_equals_single_runs(step):
    runs, batches = [tiny_params(seed) for seed in range(3)], tokens(3)
    singles = [step(params, batch) for params, batch in zip(runs, batches, strict=True)]
    stack = lambda trees: jax.tree.map(lambda *a: np.stack(a), *trees)  # noqa: E731
    assert_close(jax.jit(jax.vmap(jax.value_and_grad(tiny_loss)))(stack(runs), batches), stack(singles))


def test_checkpoint_and_scan_equal_the_plain_step(step):
    params, batch = tiny_params(), tokens()[0]
    expected = step(params, batch)
    assert_close(jax.jit(jax.value_and_grad(jax.checkpoint(tiny_loss)))(params, batch), expected)
    _, scanned = jax.lax.scan(lambda c, t: (c, step(params, t)), 0, batch[None])
    assert_close(jax.tree.map(lambda a: a[0], scanned), expected)


@pytest.mark.parametrize("layout", ["data", "fsdp", "tensor"])
def test_eight_devices_equal_one(step, layout):
    mesh = jax.make_mesh((2, 4), ("data", layout if layout != "data" else "rest"), axis_types=(AxisType.Auto,) * 2)
    cuts = {
        "data": ({}, P(("data", "rest"))),
        "fsdp": ({"embedding": P(None, "fsdp"), "qkv": P("fsdp"), "o": P(None, "fsdp")}, P(("data", "fsdp"))),
        "tensor": ({"embedding": P("tensor"), "qkv": P(None, "tensor"), "bias": P("tensor"), "o": P("tensor")},
                   P("data")),
    }
    by_name, batch_cut = cuts[layout]
    params, batch = tiny_params(), tokens()[0]
    placed = {name: NamedSharding(mesh, by_name.get(name, P())) for name in params}
    sharded_step = jax.jit(jax.value_and_grad(tiny_loss), in_shardings=(placed, NamedSharding(mesh, batch_cut)))
    assert_close(sharded_step(jax.device_put(params, placed), batch), step(params, batch))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("devices", [1, 4])
def test_splash_wrapper_matches_numpy(window, devices):
    """The kernel is interpreted here; its grouping, scale, window and division over a mesh are ours."""
    arrays = qkv(length=256)
    mesh = jax.make_mesh((devices // 2 or 1, devices - devices // 2), ("data", "tensor"),
                         devices=jax.devices()[:devices], axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        out = jax.jit(lambda *a: backend._splash(*a, Scores(0.4, window), interpret=True))(*to_jax(*arrays))
    np.testing.assert_allclose(out, attention_numpy(*arrays, 0.4, window), atol=2e-5)


def test_documents_in_a_row_are_as_if_each_had_its_own():
    """By XLA, and by the TPU's kernel, interpreted and divided over a mesh."""
    arrays, ends = qkv(length=256), (0, 40, 180, 256)
    pairs = [*itertools.pairwise(ends)]
    alone = [attention_numpy(*(a[:, begin:end] for a in arrays), 0.4, 30) for begin, end in pairs]
    begins_BxL = np.broadcast_to(np.repeat(ends[:-1], np.diff(ends)), (2, 256))
    scores = Scores(0.4, 30, begins_BxC=jnp.asarray(begins_BxL))
    mesh = jax.make_mesh((2, 2), ("data", "tensor"), devices=jax.devices()[:4], axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        splash = jax.jit(lambda *a: backend._splash(*a, scores, interpret=True))(*to_jax(*arrays))
    for out in (splash, jax.jit(lambda *a: backend.attention(*a, scores))(*to_jax(*arrays))):
        np.testing.assert_allclose(out, np.concatenate(alone, axis=1), atol=2e-5)


@pytest.fixture
def cudnn_calls(monkeypatch):
    """Pretends to be on an H100 and records what cuDNN would be asked to do."""
    calls = []

    def fake(q, k, v, *, scale, implementation, is_causal, local_window_size):
        assert implementation == "cudnn" and is_causal and isinstance(scale, float)
        calls.append((scale, local_window_size))
        return backend.reference(q, k, v, Scores(scale, local_window_size and local_window_size[0] + 1))

    device = SimpleNamespace(client=SimpleNamespace(platform_version="cuda 13"), compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", fake)
    return calls


@pytest.mark.parametrize("scale, asked", [(0.5, 0.5), (jnp.float32(0.5), 1.0)])
def test_gpu_takes_cudnn_with_a_number_for_scale(cudnn_calls, scale, asked):
    arrays = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in qkv()]
    out = backend.attention(*(jnp.asarray(a, jnp.bfloat16) for a in arrays), Scores(scale, window=5))
    assert cudnn_calls == [(asked, (4, 0))]
    np.testing.assert_allclose(np.asarray(out, np.float64), attention_numpy(*arrays, 0.5, 5), atol=0.02)


@pytest.mark.parametrize("dtype, dim, options", [
    (jnp.float32, 8, {}), (jnp.bfloat16, 12, {}), (jnp.bfloat16, 264, {}), (jnp.bfloat16, 8, {"softcap": 3.0}),
    (jnp.bfloat16, 8, {"bias_slopes": jnp.ones(HEADS)}), (jnp.bfloat16, 8, {"window": 4, "block": 2}),
    (jnp.bfloat16, 8, {"begins_BxC": jnp.zeros((1, 4), jnp.int32)}),
])
def test_gpu_falls_back_to_xla(cudnn_calls, dtype, dim, options):
    q, k, v = (jnp.ones((1, 4, n, dim), dtype) for n in (HEADS, GROUPS, GROUPS))
    out = backend.attention(q, k, v, Scores(0.5, **options))
    assert cudnn_calls == [] and out.dtype == dtype and jnp.all(out == 1)


@pytest.mark.parametrize("option", Scores._fields[2:-1])
def test_no_kernel_is_asked_for_what_it_was_not_written_for(option):
    assert Scores(0.5, window=5).plain and not Scores(0.5, **{option: 1.0}).plain


@pytest.mark.parametrize("version, capability, largest", [
    ("cuda 13", "9.0", 256), ("cuda 13", "12.0", 256), ("cuda 12", "8.0", 128), ("cuda 12", "7.5", None),
    ("rocm 7", "gfx942", None),
])
def test_cudnn_head_dims(monkeypatch, version, capability, largest):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=version), compute_capability=capability)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    dims = backend._cudnn_head_dims()
    assert max(dims, default=None) == largest and all(d % 8 == 0 for d in dims)


@pytest.mark.parametrize("target, dtype, length, dim, plain, expected", [
    ("gpu", jnp.bfloat16, 40, 64, True, "cudnn"), ("gpu", jnp.bfloat16, 40, 12, True, "xla"),
    ("gpu", jnp.bfloat16, 40, 64, False, "xla"), ("gpu", jnp.float32, 40, 64, True, "xla"),
    ("tpu", jnp.float32, 256, 12, True, "splash"), ("tpu", jnp.bfloat16, 200, 64, True, "xla"),
    ("tpu", jnp.bfloat16, 256, 64, False, "xla"), ("cpu", jnp.bfloat16, 256, 64, True, "xla"),
])
def test_the_kernel_is_known_without_a_device(target, dtype, length, dim, plain, expected):
    assert backend.kernel(target, dtype, length, dim, plain) == expected
    apart = "xla" if expected == "cudnn" else expected
    assert backend.kernel(target, dtype, length, dim, plain, documents=True) == apart
