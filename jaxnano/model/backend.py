"""The three operations that take most of a step's time; the one place where an implementation is picked by platform.

The choice is made in Python while tracing, from `platform()`, so a compiled step holds one path only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

CPU_CHUNK = 32  # queries at a time on CPU
LONG_CHUNK = 1024  # queries at a time elsewhere, where rows are bounded by documents or windows and may be very long
CUDNN_DTYPES, CUDNN_DIMS = (jnp.bfloat16, jnp.float16), range(8, 257, 8)  # on Hopper and newer


class Choices(NamedTuple):
    """What a bench may choose otherwise, in a process of its own, before it traces anything.

    fused: whether attention takes a kernel where there is one. splash_blocks: rows and columns of one step of TPU's,
    largest first; the last must divide the length. scan: whether blocks that are all alike are one traced block.
    """

    fused: bool = True
    splash_blocks: tuple[int, ...] = (512, 256, 128)
    scan: bool = False


CHOICES = Choices()


def platform() -> str:
    """cpu, gpu or tpu: what is being traced for. The mesh in use says so, whose devices may only be described."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if described is None else described.platform


def linear(x: jax.Array, w_DxF: jax.Array, b_F: jax.Array | None = None) -> jax.Array:
    """x @ w + b over the last axis, in x's dtype.

    All leading axes become one, so that the weight gradient sums over a single axis: over two of them XLA's CPU
    backend is slow (width 64, length 64, one thread: a whole training step took 1.3 times as long).

    Args: x: [..., D], of rank 2 or more. w_DxF and b_F: parameters of any float dtype.
    Returns: [..., F].
    """
    y_MxF = x.reshape(-1, x.shape[-1]) @ w_DxF.astype(x.dtype)
    if b_F is not None:
        y_MxF = y_MxF + b_F.astype(x.dtype)[None]
    return y_MxF.reshape(*x.shape[:-1], w_DxF.shape[1])


@jax.custom_vjp
def watch(x: jax.Array, blank_NxKxK: jax.Array) -> jax.Array:
    """x as it is. What is called its gradient by `blank` are the second moments of its channels over all tokens.

    Args: x: [..., N * K]. blank_NxKxK: of anything; channels are taken in N blocks.
    """
    return x


def _watch_backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, blank = saved
    x_MxNxK = x.reshape(-1, *blank.shape[:2]).astype(jnp.float32)
    return gradient, jnp.einsum("mnk,mnj->nkj", x_MxNxK, x_MxNxK) / x_MxNxK.shape[0]


watch.defvjp(lambda x, blank: (x, (x, blank)), _watch_backward)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross entropy of each token, in nats, computed in float32; of bfloat16 logits log-softmax is rounded to bfloat16.

    Its gradient is written out, softmax minus one-hot: the derived one scatters, which is slow on CPU.

    Args: logits: [..., V]. targets: integers [...] in [0, V).
    Returns: float32 [...].
    """
    return _cross_entropy_forward(logits, targets)[0]


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return targets[..., None] == jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)


def _log_softmax(z: jax.Array, total: jax.Array, narrow: bool) -> jax.Array:
    """z less its logsumexp, in float32 but for the rounding."""
    shifted = z - total[..., None]
    return jax.lax.reduce_precision(shifted, 8, 7) if narrow else shifted  # a cast and back may be taken out


def _cross_entropy_forward(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, Any]:
    z = logits.astype(jnp.float32)
    total, narrow = jax.nn.logsumexp(z, axis=-1), logits.dtype == jnp.bfloat16
    picked = jnp.sum(jnp.where(_is_target(z, targets), _log_softmax(z, total, True) if narrow else z, 0.0), axis=-1)
    return -picked if narrow else total - picked, (logits, targets, total)


def _cross_entropy_backward(saved: Any, gradient: jax.Array) -> tuple[jax.Array, None]:
    logits, targets, total = saved
    softmax = jnp.exp(_log_softmax(logits.astype(jnp.float32), total, logits.dtype == jnp.bfloat16))
    slope = softmax - _is_target(logits, targets).astype(jnp.float32)
    return (gradient[..., None] * slope).astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


class Mix(NamedTuple):
    """What heads add of each other, to scores or to weights: X_h + sum_g M_gh X_g + sum_r b_hr sum_g a_gr X_g.

    matrix_HxH: M. from_BxCxHxR, to_BxCxHxR: a and b of each query. window: of weights of their own, whose mixture alone
    is added to the output; None: the weights themselves are mixed.
    """

    matrix_HxH: jax.Array | None = None
    from_BxCxHxR: jax.Array | None = None
    to_BxCxHxR: jax.Array | None = None
    window: int | None = None

    def added(self, x_BxHxCxS: jax.Array) -> jax.Array:
        """The mixture, in float32."""
        total = jnp.zeros((), jnp.float32)
        if self.matrix_HxH is not None:
            total += jnp.einsum("gh,bgcs->bhcs", self.matrix_HxH, x_BxHxCxS)
        if self.from_BxCxHxR is not None:
            shared_BxRxCxS = jnp.einsum("bcgr,bgcs->brcs", self.from_BxCxHxR, x_BxHxCxS)
            total += jnp.einsum("bchr,brcs->bhcs", self.to_BxCxHxR, shared_BxRxCxS)
        return total


class Scores(NamedTuple):
    """How a query weighs the keys it sees; numbers may be traced.

    scale: multiplies the scores. window: query i sees keys j with 0 <= i - j < window; None for all of them. block: the
    same of i // block, j // block and window // block, for j <= i. softcap: c: scores become c * tanh(scores / c).
    logit: what else they become, of scores [B, H, C, S], heads [1, H, 1, 1] and distances [1, 1, C, S] in float32.
    bias_slopes: [H]: after these, scores lose slope * (i - j) (Press et al. 2021, arXiv:2108.12409). before, after:
    what heads then share, before and after the softmax. begins_BxC: each query's first key, where its document begins.
    """

    scale: Any
    window: int | None = None
    softcap: Any = None
    bias_slopes: jax.Array | None = None
    logit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    block: int | None = None
    before: Mix | None = None
    after: Mix | None = None
    begins_BxC: jax.Array | None = None

    @property
    def plain(self) -> bool:
        """Whether the kernels can do it: scale, window and documents alone (`Model.plain_scores` says so earlier)."""
        return all(option is None for option in self[2:-1])  # one that is added is not theirs until they know it

    def of(self, start: int, end: int) -> Scores:
        """The same for the queries from `start` to `end`."""
        def cut(y: jax.Array | None) -> Any:
            return None if y is None else y[:, start:end]

        before, after = (mix and mix._replace(from_BxCxHxR=cut(mix.from_BxCxHxR), to_BxCxHxR=cut(mix.to_BxCxHxR))
                         for mix in (self.before, self.after))
        return self._replace(before=before, after=after, begins_BxC=cut(self.begins_BxC))


def kernel(target: str, dtype: Any, length: int, head_dim: int, plain: bool, cudnn_dims: range = CUDNN_DIMS,
           documents: bool = False) -> str:
    """Which implementation of attention runs: `cudnn`, `splash`, or `xla`, which alone holds all H * L * L scores.

    Args: target: cpu, gpu or tpu. dtype: of queries, keys and values. plain: `Scores.plain`. cudnn_dims: head
    dimensions that the GPU takes, those of the newest where none is at hand. documents: whether they are kept apart,
    which JAX does not let cuDNN do.
    """
    plain = plain and CHOICES.fused
    if plain and not documents and target == "gpu" and dtype in CUDNN_DTYPES and head_dim in cudnn_dims:
        return "cudnn"
    return "splash" if plain and target == "tpu" and length % CHOICES.splash_blocks[-1] == 0 else "xla"


def attention(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, scores: Scores) -> jax.Array:
    """Causal softmax attention; the softmax is in float32 everywhere.

    GPU and TPU: the `kernel` for it. CPU: chunks of queries that read only the keys they can see. Otherwise one masked
    softmax in XLA.

    Args: q_BxLxHxK, k_BxLxGxK, v_BxLxGxK: head h reads keys of group h // (H / G).
    Returns: [B, L, H, K] in q's dtype.
    Raises: ValueError if G does not divide H or the window is below 1.
    """
    (length, heads, dim), groups = q_BxLxHxK.shape[1:], k_BxLxGxK.shape[2]
    if heads % groups:
        raise ValueError(f"{heads} query heads are not a multiple of {groups} key heads")
    if scores.window is not None and scores.window < 1:
        raise ValueError(f"window {scores.window}: a query sees at least itself, so 1 or more")
    target, arrays = platform(), (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK)
    dims = _cudnn_head_dims() if target == "gpu" else CUDNN_DIMS
    chunk = CPU_CHUNK if target == "cpu" else length if scores.begins_BxC is None else LONG_CHUNK
    if scores.after is not None and scores.after.window is not None:
        own = scores._replace(window=min(scores.after.window, length), block=None)
        return attention(*arrays, scores._replace(after=None)) + _chunked(*arrays, min(chunk, LONG_CHUNK), own)
    match kernel(target, q_BxLxHxK.dtype, length, dim, scores.plain, dims, scores.begins_BxC is not None):
        case "cudnn":
            return _cudnn(*arrays, scores)
        case "splash":
            return _splash(*arrays, scores)
    return _chunked(*arrays, chunk, scores)


def attend_cached(
    q_BxLxHxK: jax.Array, k_BxTxGxK: jax.Array, v_BxTxGxK: jax.Array, first: jax.Array, scores: Scores
) -> jax.Array:
    """`attention` of a few new queries over a cache of T places, in float32; place `first` is the first query's."""
    q, k, v = (y.swapaxes(1, 2).astype(jnp.float32) for y in (q_BxLxHxK, k_BxTxGxK, v_BxTxGxK))
    if scores.after is not None and scores.after.window is not None:
        mixed = _attend(q, k, v, first, 0, scores._replace(window=scores.after.window, block=None))
        rest = attend_cached(q_BxLxHxK, k_BxTxGxK, v_BxTxGxK, first, scores._replace(after=None))
        return rest + mixed.swapaxes(1, 2).astype(rest.dtype)
    return _attend(q, k, v, first, 0, scores).swapaxes(1, 2).astype(q_BxLxHxK.dtype)


def reference(q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, scores: Scores) -> jax.Array:
    """`attention` as one masked softmax on any platform, for comparison with the path that was picked."""
    return _chunked(q_BxLxHxK, k_BxLxGxK, v_BxLxGxK, q_BxLxHxK.shape[1], scores)


def _chunked(
    q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, chunk: int, scores: Scores
) -> jax.Array:
    q, k, v = (y.swapaxes(1, 2) for y in (q_BxLxHxK, k_BxLxGxK, v_BxLxGxK))
    length, pieces = q.shape[2], []
    for start in range(0, length, chunk):
        end, block = min(start + chunk, length), scores.block or 1
        first = 0 if scores.window is None else max(0, (start // block + 1) * block - scores.window)
        piece = q[:, :, start:end], k[:, :, first:end], v[:, :, first:end]
        pieces.append(_attend(*piece, start, first, scores.of(start, end)))
    return jnp.concatenate(pieces, axis=2).swapaxes(1, 2)


def _attend(q_BxHxCxK: jax.Array, k_BxGxSxK: jax.Array, v_BxGxSxK: jax.Array, start: int | jax.Array, first: int,
            scores: Scores) -> jax.Array:
    """C queries over S keys. start, first: places of the first query and of the first key."""
    (batch, heads, rows, dim), (groups, columns) = q_BxHxCxK.shape, k_BxGxSxK.shape[1:3]
    per_group = (batch, groups, heads // groups * rows, -1)
    scores_BxHxCxS = jnp.matmul(
        q_BxHxCxK.reshape(per_group), k_BxGxSxK.swapaxes(2, 3), preferred_element_type=jnp.float32
    ).reshape(batch, heads, rows, columns) * scores.scale
    if scores.softcap is not None:
        scores_BxHxCxS = scores.softcap * jnp.tanh(scores_BxHxCxS / scores.softcap)
    place = functools.partial(jax.lax.broadcasted_iota, jnp.int32, (rows, columns))
    distance_CxS = place(0) - place(1) + (start - first)
    if scores.logit is not None:  # what no query sees has a distance too, lest it breaks the gradient of what is seen
        distance_1x1xCxS = jnp.maximum(distance_CxS, 0).astype(jnp.float32)[None, None]
        heads_1xHx1x1 = jnp.arange(heads, dtype=jnp.float32)[None, :, None, None]
        scores_BxHxCxS = scores.logit(scores_BxHxCxS, heads_1xHx1x1, distance_1x1xCxS)
    if scores.bias_slopes is not None:
        slopes_Hx1x1 = scores.bias_slopes.astype(jnp.float32)[:, None, None]
        scores_BxHxCxS -= (slopes_Hx1x1 * distance_CxS[None].astype(jnp.float32))[None]
    if scores.before is not None:
        scores_BxHxCxS += scores.before.added(scores_BxHxCxS)
    seen_1xCxS = distance_CxS[None] >= 0
    if scores.window is not None and scores.block is None:
        seen_1xCxS &= distance_CxS[None] < scores.window
    elif scores.window is not None and scores.block is not None:
        blocks_CxS = (place(0) + start) // scores.block - (place(1) + first) // scores.block
        seen_1xCxS &= blocks_CxS[None] < scores.window // scores.block
    if scores.begins_BxC is not None:
        seen_1xCxS &= place(1)[None] + first >= scores.begins_BxC[:, :, None]
    weights_BxHxCxS = jax.nn.softmax(jnp.where(seen_1xCxS[:, None], scores_BxHxCxS, -jnp.inf), axis=-1)
    if scores.after is not None:
        added = scores.after.added(weights_BxHxCxS)
        weights_BxHxCxS = added if scores.after.window is not None else weights_BxHxCxS + added
    weights = weights_BxHxCxS.astype(v_BxGxSxK.dtype).reshape(per_group)
    return (weights @ v_BxGxSxK).reshape(batch, heads, rows, dim)


def _cudnn_head_dims() -> range:
    """Head dimensions that cuDNN's flash attention takes on the first device: none before Ampere or without CUDA."""
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:
        return range(0)
    capability = float(device.compute_capability)
    return CUDNN_DIMS if capability >= 9.0 else range(8, 129 if capability >= 8.0 else 0, 8)


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, scores: Scores) -> jax.Array:
    scale, window = scores.scale, scores.window
    if not isinstance(scale, int | float):  # cuDNN compiles the scale in
        q, scale = q * jnp.asarray(scale, q.dtype), 1.0
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, scale=float(scale), implementation="cudnn",
                                        local_window_size=None if window is None else (window - 1, 0))


def _splash(
    q_BxLxHxK: jax.Array, k_BxLxGxK: jax.Array, v_BxLxGxK: jax.Array, scores: Scores, interpret: bool = False
) -> jax.Array:
    """Pallas kernel for TPU; `interpret` runs it anywhere, slowly, for tests.

    The compiler cannot split a kernel over devices: with a mesh set (`jax.set_mesh`) its axis "tensor" divides the
    heads and all other axes together divide the batch.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length = q_BxLxHxK.shape[1]
    block = next(size for size in CHOICES.splash_blocks if length % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq")
    sizes = kernels.BlockSizes(**dict.fromkeys(names, block))
    mask = masks.LocalMask((length, length), (None if scores.window is None else scores.window - 1, 0), 0)

    def local(q_BxHxLxK: jax.Array, k_BxGxLxK: jax.Array, v_BxGxLxK: jax.Array, *begins_BxL: jax.Array) -> Any:
        every_head = masks.MultiHeadMask([mask] * q_BxHxLxK.shape[1])
        kernel = kernels.make_splash_mha(every_head, block_sizes=sizes, head_shards=1, q_seq_shards=1,
                                         interpret=interpret)
        documents = [kernels.SegmentIds(begins, begins) for begins in begins_BxL]  # each is known by its begin
        return jax.vmap(kernel)(q_BxHxLxK, k_BxGxLxK, v_BxGxLxK, *documents)

    mesh, begins = jax.sharding.get_abstract_mesh(), [] if scores.begins_BxC is None else [scores.begins_BxC]
    if mesh.size > 1:
        rows = tuple(name for name in mesh.axis_names if name != "tensor")
        spec = jax.P(rows, "tensor" if "tensor" in mesh.axis_names else None)
        specs = (spec,) * 3 + (jax.P(rows),) * len(begins)
        local = jax.shard_map(local, in_specs=specs, out_specs=spec, check_vma=False)
    q = (q_BxLxHxK * jnp.asarray(scores.scale, jnp.float32)).astype(q_BxLxHxK.dtype)
    out_BxHxLxK = local(*(y.swapaxes(1, 2) for y in (q, k_BxLxGxK, v_BxLxGxK)), *begins)
    return out_BxHxLxK.swapaxes(1, 2).astype(q_BxLxHxK.dtype)
