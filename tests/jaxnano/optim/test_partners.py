"""Parameters that see each other: the values and outputs of attention, by heads, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optim_reference import group, random_tree
from polynomials import orthogonalized

from jaxnano.config.base import ConfigError, leaves, validate
from jaxnano.config.optimizer import Optimizer
from jaxnano.config.recipe import at
from jaxnano.model.specs import Initial, Spec
from jaxnano.optim.build import build, update_cost

HEADS, LR, EPS, STEPS = 3, 0.05, 1e-2, 4
PIECES = {"axis": "heads", "count": HEADS}
PARTNER = {"name": "other", "pairs": [["attention/v", "attention/o"]], "transposed": True}
CIRCUIT = [
    {"kind": "average", "name": "m", "decay": 0.8},
    {"kind": "polar", "of": "m_decay * m + (1 - m_decay) * g", "coefficients": "converged"},
    {"name": "scaled", "into": "b", "code": "u / sqrt(norm(other_W) ** 2 / minimum(fan_in, fan_out) + eps)",
     "pieces": PIECES},
    {"name": "length", "code": "b * norm(u) / maximum(norm(b), 1e-30)"},
    {"name": "gauge", "pieces": PIECES, "code": "u - W * (dot(W, u) - dot(other_W, other_u)) / "
     "(norm(W) ** 2 + norm(other_W) ** 2 + 2 * minimum(fan_in, fan_out) * eps)"},
]
SHAPES = {f"blocks_{i}/attention/{name}": shape for i in range(2) for name, shape in (("v", (8, 12)), ("o", (12, 8)))}
TABLE = {path: Spec(shape, "matrix", Initial("normal", 0.1), "DH" if path.endswith("v") else "HD")
         for path, shape in SHAPES.items()}


def optimizer(*chain, **fields):
    rest = {"name": "rest", "roles": ["matrix", "embedding", "head", "gain", "bias", "scalar", "gate"], "lr": 0.1,
            "chain": [{"kind": "adam"}]}
    first = {"name": "circuit", "paths": ["*/attention/v", "*/attention/o"], "lr": LR, "partners": [PARTNER],
             "params": {"eps": EPS}, "chain": list(chain), **fields}
    return validate(Optimizer, {"clip": None, "groups": [first, rest]})


def reference(v, o, grads_v, grads_o):
    """The definition, head by head: v is (D, H K), o is (H K, D)."""
    def heads(w, axis):
        return np.split(w, HEADS, axis)

    mv = mo = 0.0
    for gv, go in zip(grads_v, grads_o, strict=True):
        mv, mo = 0.8 * mv + 0.2 * gv, 0.8 * mo + 0.2 * go
        dv, do = orthogonalized(0.8 * mv + 0.2 * gv, "converged"), orthogonalized(0.8 * mo + 0.2 * go, "converged")
        size = v.shape[1] // HEADS
        sv = [(np.sum(x**2) / size + EPS) ** -0.5 for x in heads(v, 1)]
        so = [(np.sum(x**2) / size + EPS) ** -0.5 for x in heads(o, 0)]
        new_v = np.concatenate([s * x for s, x in zip(so, heads(dv, 1), strict=True)], 1)
        new_o = np.concatenate([s * x for s, x in zip(sv, heads(do, 0), strict=True)], 0)
        dv = new_v * np.linalg.norm(dv) / np.linalg.norm(new_v)
        do = new_o * np.linalg.norm(do) / np.linalg.norm(new_o)
        out_v, out_o = [], []
        for V, O, dV, dO in zip(heads(v, 1), heads(o, 0), heads(dv, 1), heads(do, 0), strict=True):
            x = (np.sum(V * dV) - np.sum(O * dO)) / (np.sum(V**2) + np.sum(O**2) + 2 * size * EPS)
            out_v.append(dV - x * V)
            out_o.append(dO + x * O)
        v, o = v - LR * np.concatenate(out_v, 1), o - LR * np.concatenate(out_o, 0)
    return v, o


def test_circuits_of_values_and_outputs():
    """To rounding over four steps in double precision, two blocks at once."""
    cfg, grads, params = optimizer(*CIRCUIT), random_tree(0, SHAPES, STEPS), random_tree(1, SHAPES)
    with jax.enable_x64(True):
        grads, params = ({path: jnp.asarray(x, jnp.float64) for path, x in tree.items()} for tree in (grads, params))
        updater = build(at(cfg, {leaf.path: leaf.value for leaf in leaves(cfg)}, 0.5), TABLE, 0.5, 10.0)
        state, update = updater.init(params), jax.jit(updater.update)
        for t in range(STEPS):
            state = update({path: g[t] for path, g in grads.items()}, state)
        for block in range(2):
            names = [f"blocks_{block}/attention/{name}" for name in ("v", "o")]
            expected = reference(*(np.asarray(tree[name]) for tree in (params, grads) for name in names))
            for name, want in zip(names, expected, strict=True):
                np.testing.assert_allclose(state.params[name], want, rtol=0, atol=1e-9, err_msg=name)


def test_a_partner_is_seen_as_it_was_before_the_line():
    """Each takes the other's direction: were one changed first, both would end alike."""
    cfg = optimizer({"name": "swap", "code": "other_u + 0 * eps"})
    grads, params = random_tree(0, SHAPES), random_tree(1, SHAPES)
    updater = build(at(cfg, {leaf.path: leaf.value for leaf in leaves(cfg)}, 0.5), TABLE, 0.5, 10.0)
    got = updater.update(grads, updater.init(params)).params
    for path, w in params.items():
        other = path[:-1] + {"v": "o", "o": "v"}[path[-1]]
        np.testing.assert_allclose(got[path], w - np.float32(LR) * grads[other].T, atol=1e-6)


@pytest.mark.parametrize(("fields", "message"), [
    ({"partners": [PARTNER | {"transposed": False}]},
     'circuit.partners.other: "blocks_0/attention/v": has shape (8, 12), its partner blocks_0/attention/o (12, 8); '
     "pairs of one shape, or of its transpose where transposed, would do"),
    ({"paths": ["*/attention/v"]}, 'circuit.partners.other: "blocks_0/attention/v": its partner, blocks_0/attention/o, '
     "is not in the group"),
    ({"partners": [PARTNER | {"pairs": [["v", "k"], ["q", "o"]]}]}, "its partner, blocks_0/attention/k, is not in"),
    ({"partners": [PARTNER | {"pairs": [["q", "k"]]}]}, '"blocks_0/attention/v": is in no pair'),
])
def test_a_partner_that_is_not_there_is_refused(fields, message):
    with pytest.raises(ConfigError) as caught:
        update_cost(optimizer(*CIRCUIT, **fields), TABLE)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("chain", "fields", "message"), [
    ([{"name": "a", "code": "u + other_m"}], {"partners": [PARTNER]}, 'chain.a: "other_m": no such name above'),
    ([{"name": "a", "code": "u + g"}], {"partners": [PARTNER]},
     'partners.other: "other": no line of the chain reads other_W or what else it brings'),
    ([{"name": "a", "code": "u + other_u"}], {"partners": [PARTNER, PARTNER]}, "names in a list are unique"),
    ([{"name": "a", "code": "u + other_u", "into": "other_g"}], {"partners": [PARTNER]}, "the name is taken"),
    ([{"name": "a", "code": "u + other_u"}], {"partners": [PARTNER | {"name": "the_other"}]}, "partners.the_other"),
    ([{"name": "a", "code": "u + other_u"}], {"partners": [PARTNER | {"pairs": []}]}, "at least 1 items"),
])
def test_partners_that_make_no_sense_are_refused(chain, fields, message):
    with pytest.raises(ConfigError) as caught:
        group(*chain, **fields)
    assert message in str(caught.value) and "\n" not in str(caught.value)
