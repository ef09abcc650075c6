"""A small, fast GPT in JAX whose model and optimizer are described by a config tree.

Axis legend, used in array names such as `x_BxLxD` and `q_BxLxHxK`:

    B batch   L length   D width   H heads   G key/value heads   K head dimension
    F feed-forward width   V vocabulary   N layers
"""
