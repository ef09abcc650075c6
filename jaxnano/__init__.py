"""A small, fast GPT in JAX whose model and optimizer are described by a config tree.

    recipe, params, about = jaxnano.load("gs://bucket/champion")    # a published model, or a run's folder

Axis legend, used in array names such as `x_BxLxD` and `q_BxLxHxK`:

    B batch   L length   D width   H heads   G key/value heads   K head dimension
    F feed-forward width   V vocabulary   N layers
"""

from typing import TYPE_CHECKING, Any

from jaxnano import interrupt

interrupt.quiet()

if TYPE_CHECKING:
    from jaxnano.published import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load` is imported when it is asked for: `import jaxnano` imports next to nothing."""
    if name == "load":
        from jaxnano.published import load

        return load
    raise AttributeError(f"module 'jaxnano' has no attribute {name!r}")
