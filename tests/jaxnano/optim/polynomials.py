"""Newton-Schulz polynomials and what they do, in float64."""

import numpy as np

POLYNOMIALS = {
    "quintic": [(3.4445, -4.7750, 2.0315)] * 5,
    "converged": [(2, -1.5, 0.5)] * 12,
    "polar_express": [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ],
}
# Where singular values end that start between 0.3 % and 100 % of the Frobenius norm.
RANGES = {"quintic": (0.68, 1.21), "converged": (0.9999, 1.0001), "polar_express": (0.85, 1.15)}


def orthogonalized(x, kind, power=2, weights=None):
    """The iteration in float64, on the singular values alone: X = U f(S) V^T. power: of the norm that S starts from."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    factor, eps = (1.02, 1e-6) if kind == "polar_express" else (1.0, 1e-7)
    s = s / (factor * np.sum(s**power) ** (1 / power) + eps)
    seen = [s]
    for a, b, c in POLYNOMIALS.get(kind, kind) if isinstance(kind, str) else kind:
        seen.append(s := a * s + b * s**3 + c * s**5)
    s = s if weights is None else sum(w * x for w, x in zip(weights, seen, strict=False))
    return (u * s) @ vt


def conditioned(shape, smallest=0.01):
    """A random matrix whose singular values run geometrically from `smallest` to 1."""
    rng = np.random.default_rng(sum(shape))
    u, _, vt = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return ((u * np.geomspace(smallest, 1, min(shape))) @ vt).astype(np.float32)
