"""Chains of one's own: scope and order, what is refused, and a whole record against a float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import (
    STEPS,
    assert_all_close,
    chain_of,
    directions,
    factors_of,
    group,
    known_factor,
    random_tree,
    trajectory,
)
from polynomials import POLYNOMIALS

from jaxnano.config.base import ConfigError, leaves, validate
from jaxnano.config.edit import Diff, Edit, apply
from jaxnano.config.optimizer import Optimizer
from jaxnano.config.recipe import Recipe, recipe_id
from jaxnano.model.specs import Initial, Spec
from jaxnano.optim.build import clip_gradients, members, update_cost
from tests.jaxnano.recipes import TINY, edited

ADAM, DECAY, STEP = {"kind": "adam"}, {"kind": "decay"}, {"kind": "step"}
M = {"kind": "average", "name": "m", "decay": 0.5}

# modded-nanogpt's track 3, result 46, the hidden matrices: momentum, SOAP, trust gate, orthogonalisation from the
# Schatten-4 norm, radial brake, row floor, the step, its radius, and cautious decay after that.
RECORD = [
    {"kind": "average", "name": "m", "decay": "mu"},
    {"name": "nesterov", "into": "n", "code": "(1 - mu) * g + mu * m"},
    {"kind": "factors", "name": "q", "decay": 0.9, "every": 1},
    {"kind": "rotate", "name": "turn", "by": "q", "of": "n", "into": "p"},
    {"kind": "average", "name": "v", "of": "p * p", "decay": 0.9, "basis": "q"},
    {"name": "ratio", "into": "p", "code": "p / sqrt(maximum(v, 1e-16))"},
    {"kind": "rotate", "name": "back", "by": "q", "of": "p", "into": "s", "back": True},
    {"name": "matched", "into": "s", "code": "s * schatten(n) / maximum(schatten(s), 1e-30)"},
    {"name": "agree", "into": "gate",
     "code": "clip((cos(s, n) - 0.2) / 0.8, 0, 1) * clip(cos(s, g) / cos(n, g), 0, 1)"},
    {"name": "trust", "into": "gate", "code": "clip(gate, low, high)", "params": {"low": 0.45, "high": 0.85}},
    {"name": "blend", "into": "b", "code": "n + gate * (s - n)"},
    {"name": "length", "code": "b * norm(n) / maximum(norm(b), 1e-30)"},
    {"kind": "polar", "coefficients": "converged", "prenorm": "schatten"},
    {"name": "aspect", "code": "u * sqrt(maximum(1, fan_out / fan_in))"},
    {"name": "brake", "code": "u - a * minimum(dot(u, W) / dot(W, W), 0) * W", "params": {"a": 0.5}},
    {"name": "floor", "code": "u * maximum(1, tau * rows(W) / maximum(rows(u), 1e-30))", "params": {"tau": 0.3825}},
    {"name": "radius", "into": "r", "code": "norm(W) - lr * dot(u, W) / norm(W)"},
    STEP,
    {"name": "pin", "into": "W", "code": "W * r / norm(W)"},
    {"name": "shrink", "into": "W", "code": "W * (1 - lr * rate * positive(u * W0))", "params": {"rate": 0.025}},
]
MATRICES = {"square": (6, 6), "tall": (9, 5), "wide": (5, 9)}


def record(W, grads, inputs, outputs, lr, mu, late_pin=True):
    """The record's definitions for one matrix, in NumPy and float64, written (out, in) as PyTorch stores it.

    inputs, outputs: (factor, basis) that the matrix starts from. late_pin: False takes decay before the radius is
    restored, which is another optimizer.
    """
    (L, QL), (R, QR) = outputs, inputs
    W, m, v, out = W.T, 0.0, 0.0, []
    for G in np.swapaxes(grads, -1, -2):
        m = mu * m + (1 - mu) * G
        n = (1 - mu) * G + mu * m
        p = QL.T @ n @ QR
        v = 0.9 * v + 0.1 * p**2
        s = QL @ (p / np.sqrt(np.maximum(v, 1e-16))) @ QR.T
        s = s * schatten(n) / schatten(s)

        def cos(a, b):
            return np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b))

        gate = np.clip((cos(s, n) - 0.2) / 0.8, 0, 1) * np.clip(cos(s, G) / cos(n, G), 0, 1)
        u = n + np.clip(gate, 0.45, 0.85) * (s - n)
        u = u * np.linalg.norm(n) / np.linalg.norm(u)
        left, values, right = np.linalg.svd(u, full_matrices=False)
        values = values / (schatten(u) + 1e-7)
        for a, b, c in POLYNOMIALS["converged"]:
            values = a * values + b * values**3 + c * values**5
        u = (left * values) @ right * np.sqrt(max(1, W.shape[0] / W.shape[1]))
        c = np.sum(u * W) / np.sum(W * W)
        u = u - 0.5 * c * W if c < 0 else u
        row = np.linalg.norm(W, axis=1) / np.linalg.norm(u, axis=1)
        u = u * np.maximum(1, 0.3825 * row)[:, None]
        target = np.linalg.norm(W) - lr * np.sum(u * W) / np.linalg.norm(W)
        shrink = 1 - lr * 0.025 * (u * W > 0)
        if late_pin:
            W = W - lr * u
            W = W * target / np.linalg.norm(W) * shrink
        else:
            W = (W - lr * u) * shrink
            W = W * target / np.linalg.norm(W)
        L, R = 0.9 * L + 0.1 * G @ G.T, 0.9 * R + 0.1 * G.T @ G
        rows, columns = np.argsort(-np.diag(QL.T @ L @ QL)), np.argsort(-np.diag(QR.T @ R @ QR))
        v = v[rows][:, columns]
        QL, QR = np.linalg.qr(L @ QL[:, rows])[0], np.linalg.qr(R @ QR[:, columns])[0]
        out.append(W.T)
    return np.stack(out)


def schatten(x):
    return np.linalg.norm(x @ x.T) ** 0.5


def test_a_whole_record_is_a_chain():
    """To rounding over five steps, three shapes, in double precision; the order of its last two lines matters."""
    lr, mu, grads, params = 0.03, 0.9, random_tree(0, MATRICES, STEPS), random_tree(1, MATRICES)
    node = group(*RECORD, lr=lr, params={"mu": mu})
    starts = {path: (known_factor(m, 0), known_factor(n, 1)) for path, (m, n) in MATRICES.items()}
    with jax.enable_x64(True):
        grads, params = ({path: jnp.asarray(x, jnp.float64) for path, x in tree.items()} for tree in (grads, params))
        chain = chain_of(node, {leaf.path: leaf.value for leaf in leaves(node)})
        moved, state = params, chain.init(params)
        factors = {path: factors_of(ins, outs) for path, (ins, outs) in starts.items()}
        state["q"] = state["q"]._replace(count=jnp.ones([], jnp.int32), factors=factors)
        got, update = {path: [] for path in MATRICES}, jax.jit(chain.update)
        for t in range(STEPS):
            moved, state = update({path: g[t] for path, g in grads.items()}, state, moved)
            for path, w in moved.items():
                got[path].append(np.asarray(w))
    for path in MATRICES:
        given = np.asarray(params[path]), np.asarray(grads[path]), *starts[path], lr, mu
        np.testing.assert_allclose(np.stack(got[path]), record(*given), rtol=0, atol=1e-9, err_msg=path)
        assert np.abs(record(*given, late_pin=False) - record(*given)).max() > 1e-5


def test_lines_run_in_order_and_see_what_stands_above():
    grads, params = random_tree(0, steps=3), random_tree(1)
    chain = [M, {"name": "double", "into": "twice", "code": "2 * m_old"}, {"name": "add", "code": "twice + g"},
             {"name": "shift", "into": "W", "code": "W + lr * 3"}, STEP,
             {"name": "mix", "into": "W", "code": "(W + W0) / 2"}]
    expected = {}
    for path, w in params.items():
        m, out, w = 0.0, [], w.astype(np.float64)
        for g in grads[path].astype(np.float64):
            u, m = 2 * m + g, 0.5 * m + 0.5 * g
            out.append(w := (w + 0.1 * 3 - 0.1 * u + w) / 2)
        expected[path] = np.stack(out)
    assert_all_close(trajectory(group(*chain, lr=0.1), grads, params), expected, 1e-6)


def test_the_step_is_taken_after_the_last_line_that_writes_u():
    grads, params = random_tree(2, steps=1), random_tree(3)
    half = {"name": "half", "code": "u / 2"}
    for chain in ([half], [half, STEP], []):
        moved = trajectory(group(*chain, lr=0.1), grads, params)
        factor = 0.05 if chain else 0.1
        assert_all_close(moved, {path: (w - factor * grads[path][0])[None] for path, w in params.items()}, 1e-6)


def test_a_sum_a_debiased_average_and_its_weight():
    grads = random_tree(4, steps=4)
    got = directions(grads, M | {"sum": True}, M | {"name": "n", "debias": True},
                     {"name": "mix", "code": "m + n * n_weight"})
    expected = {}
    for path, g in grads.items():
        total, mean, out = 0.0, 0.0, []
        for x in g.astype(np.float64):
            total, mean = 0.5 * total + x, 0.5 * mean + 0.5 * x
            out.append(total + mean)
        expected[path] = np.stack(out)
    assert_all_close(got, expected, 1e-6)


@pytest.mark.parametrize(("chain", "message"), [
    ([ADAM, {"kind": "lion"}], 'chain.adam: "adam": nothing reads what it writes'),
    ([DECAY, ADAM], 'chain.decay: "decay": nothing reads what it writes'),
    ([{"kind": "hyperball"}, DECAY], 'chain.decay: "decay": nothing reads what it writes'),
    ([M], 'chain.m: "m": nothing reads what it writes'),
    ([M, {"name": "mix", "code": "u + n"}], 'chain.mix: "n": no such name above this line; known: W, W0,'),
    ([M, {"name": "mix", "code": "u + m_ol"}], "m_old would do"),
    ([{"name": "mix", "code": "u + m"}, M], "no such name above this line"),
    ([{"kind": "factors", "name": "q"}, {"name": "mix", "code": "u * q"}], 'chain.mix: "q": a line of kind factors'),
    ([{"kind": "triangles", "name": "q"}, M | {"of": "q"}], '"q": a line of kind triangles, which holds bases'),
    ([M, {"name": "mix", "code": "u + m", "into": "m"}], 'chain.mix: "m": the name is taken'),
    ([M, M | {"name": "n"}, {"name": "mix", "code": "m + n + a", "params": {"a": 1.0}},
      {"kind": "average", "name": "a", "decay": 0.5}, {"name": "use", "code": "u + a"}], None),
    ([{"name": "mix", "code": "u * lr", "params": {"lr": 1.0}}], 'chain.mix: "lr": the name is taken'),
    ([{"name": "g", "code": "u"}, {"name": "mix", "code": "u + u", "into": "g"}], 'chain.mix: "g": the name is taken'),
    ([STEP, {"kind": "hyperball"}], "one line at most takes the step"),
    ([{"kind": "rotate", "name": "in", "by": "q"}], 'chain.in: "q": no such name'),
    ([{"name": "mix", "code": "u + a", "params": {"a": 1.0, "b": 1.0}}], "b is not used"),
    ([{"name": "mix", "code": "norm(u, u)"}], "norm takes 1 argument(s)"),
    ([{"name": "mix", "code": "nrom(u)"}], "norm would do"),
    ([{"kind": "polar", "coefficients": "cubic"}], "quintic"),
    ([{"kind": "polar", "coefficients": []}], "at least 1 items"),
    ([{"kind": "adm"}], "chain.adm.kind"),
])
def test_what_makes_no_sense_is_refused_with_the_line(chain, message):
    if message is None:
        group(*chain)
        return
    with pytest.raises(ConfigError) as caught:
        group(*chain)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_parameter_of_the_group_is_shared_and_used():
    mu = {"kind": "linear", "value": 0.9}
    node = group(M | {"decay": "mu"}, {"name": "mix", "code": "mu * m + g"}, params={"mu": mu})
    assert node.params["mu"].kind == "linear"
    with pytest.raises(ConfigError, match="no line of the chain reads it"):
        group(ADAM, params={"mu": 0.5})


TABLE = {"blocks_0/ffn/up": Spec((4, 8), "matrix", Initial("normal", 0.1), "DF"),
         "blocks_0/ffn/up_bias": Spec((8,), "bias", Initial("zeros"), "F"),
         "gate": Spec((3, 2), "gate", Initial("zeros"), "CH")}


def grouped(*groups):
    rest = {"name": "rest", "roles": ["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.1,
            "chain": [ADAM]}
    return validate(Optimizer, {"groups": [*groups, rest]})


@pytest.mark.parametrize("kind", ["muon", "soap", "normuon", "hyperball"])
def test_any_chain_takes_parameters_by_path(kind):
    """Members are checked against the parameter table, not by what they are called."""
    for place in ({"paths": ["blocks_*/ffn/up"]}, {"roles": ["gate"]}):
        cfg = grouped({"name": "hidden", **place, "lr": 0.02, "chain": [{"kind": kind}]})
        assert update_cost(cfg, TABLE).flops > 0 and len(members(cfg, TABLE)["hidden"]) == 1


@pytest.mark.parametrize(("chain", "rule"), [
    ([{"kind": "muon"}], "polar: a matrix is needed, and m_decay * m + (1 - m_decay) * g has shape (8,)"),
    ([{"kind": "soap"}], "q: a matrix is needed, and g has shape (8,)"),
    ([{"kind": "normuon"}], "square: fan_in is of a matrix; (8,) is the shape of none"),
    ([{"name": "mix", "code": "norm(u)"}], "mix: u has shape (8,), the formula's value (1,)"),
    ([{"name": "mix", "code": "rows(u) * u"}], "mix: column 1: rows is of a matrix"),
])
def test_a_chain_that_a_parameter_does_not_fit_is_refused_with_both(chain, rule):
    with pytest.raises(ConfigError) as caught:
        update_cost(grouped({"name": "hidden", "roles": ["bias"], "lr": 0.1, "chain": chain}), TABLE)
    assert f"optimizer.groups.hidden.chain: \"blocks_0/ffn/up_bias\": {rule}" in str(caught.value)


def test_a_change_inside_a_preset_is_one_edit_and_undone_it_is_the_preset():
    place = "optimizer.groups.matrices.chain"
    base = edited(TINY, {place: [ADAM, DECAY]})
    changed = group(ADAM).steps[:-1]
    lines = [step.model_dump(mode="json", exclude_defaults=True) for step in changed]
    same = apply(base, Diff(name="same", edits=(Edit.to(base, place, [*lines, DECAY]),)))
    assert recipe_id(same) == recipe_id(base)
    lines[2]["code"] = "tanh(m) / (sqrt(v) + eps)"
    other = apply(base, Diff(name="tanh", edits=(Edit.to(base, place, [*lines, DECAY]),)))
    assert recipe_id(other) != recipe_id(base) and isinstance(other, Recipe)


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_clip_gradients_bounds_the_joint_norm(max_norm):
    grads = random_tree(4)
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    got = clip_gradients(grads, jnp.float32(max_norm))
    assert_all_close(got, {path: g * min(1, max_norm / norm) for path, g in grads.items()}, 1e-6)


def test_clip_gradients_keeps_zero_and_shows_divergence():
    assert not np.any(clip_gradients({"w": jnp.zeros(3)}, 1.0)["w"])
    assert np.all(np.isnan(clip_gradients({"w": jnp.array([jnp.inf, jnp.nan]), "b": jnp.ones(1)}, 1.0)["b"]))
