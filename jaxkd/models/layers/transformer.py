"""The pre-LN transformer encoder that the image and text networks share.

    x <- x + attention(LN(x));  x <- x + mlp(LN(x));  after the last block one more LN
Dosovitskiy et al., ICLR 2021 [published]; stochastic depth linear over depth as in Touvron et al., ICML 2021
[published]; layer scale as in Touvron et al., ICCV 2021 [published].

Parameters are float32, matrix products run in `dtype`, softmax and LayerNorm statistics in float32. Names:
encoder/blockNN/{norm1, attn/{qkv, proj}, [attn_scale], norm2, mlp/{fc1, fc2}, [mlp_scale]}, encoder/norm.
`qkv` holds queries, keys and values in this order, each split into heads.
"""
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jaxkd import errors, parallel
from jaxkd.models.layers.initial import glorot_uniform, small_normal

Tokens = Float[Array, 'batch tokens width']
AttentionMap = Float[Array, 'batch heads tokens tokens']


@jax.custom_vjp
def product(x: Float[Array, '*places d'], kernel: Float[Array, 'd features']) -> Float[Array, '*places features']:
    """x @ kernel. The gradient is written out (reverse mode alone): of the kernel it is one product of two matrices as
    they lie in memory, for which XLA's CPU compiler would otherwise copy the larger one into its transpose.
    """
    return x @ kernel


def _product_backward(saved, gradient):
    x, kernel = saved
    rows, gradients = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    return (gradients @ kernel.T).reshape(x.shape), jax.lax.dot_general(rows, gradients, (((0,), (0,)), ((), ())))


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _product_backward)


Dense = functools.partial(nn.Dense, kernel_init=glorot_uniform,
                          dot_general=lambda x, kernel, dimensions, precision=None: product(x, kernel))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: Float[Array, '*places width'], scale: Float[Array, ' width'], bias: Float[Array, ' width'],
               epsilon: float) -> Float[Array, '*places width']:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias in float32, the variance in two passes.

    The gradient is written out (reverse mode alone). Derived from the two passes, it lets XLA's CPU compiler sum the
    gradients of all later branches anew in each norm of a deep network: work that grows with the square of its depth.
    """
    return _forward(x, scale, bias, epsilon)[0]


@functools.partial(jax.jit, static_argnums=3, inline=True)
def _forward(x, scale, bias, epsilon):
    mean = jnp.mean(x.astype(jnp.float32), -1, keepdims=True)
    centred = x - mean
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + epsilon)
    return centred * (inverse * scale) + bias, (x, mean, inverse, scale)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _backward(epsilon, saved, gradient):
    x, mean, inverse, scale = saved
    normalised = (x - mean) * inverse
    scaled, places = gradient * scale, tuple(range(x.ndim - 1))
    along = jnp.mean(scaled * normalised, -1, keepdims=True)
    dx = inverse * (scaled - jnp.mean(scaled, -1, keepdims=True) - normalised * along)
    return dx.astype(x.dtype), jnp.sum(gradient * normalised, places), jnp.sum(gradient, places)


layer_norm.defvjp(_forward, _backward)


class LayerNorm(nn.Module):
    """`layer_norm` over the last axis, with the parameters scale and bias of flax's, in `dtype` (None: float32)."""
    epsilon: float = 1e-6
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, '*places width']) -> Float[Array, '*places width']:
        shape = x.shape[-1:]
        scale = self.param('scale', nn.initializers.ones, shape)
        bias = self.param('bias', nn.initializers.zeros, shape)
        return layer_norm(x, scale, bias, self.epsilon).astype(self.dtype or jnp.float32)


Heads = Float[Array, 'batch tokens heads width']


@jax.custom_vjp
def fused_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """softmax(q k' / sqrt(width)) v.

    On an NVIDIA GPU, in bfloat16 or float16, by a kernel of cuDNN that never has the probabilities in memory, and
    another for the gradient. That takes an even number of tokens, so an odd one gets a token that nobody attends to.
    """
    return jax.lax.platform_dependent(q, k, v, **_ways(q.dtype))


def _ways(dtype: DTypeLike) -> dict[str, Callable[[Heads, Heads, Heads], Heads]]:
    """{platform: its function} for `platform_dependent`."""
    fused = parallel.has_cuda() and dtype in (jnp.bfloat16, jnp.float16)
    ways: dict[str, Callable[[Heads, Heads, Heads], Heads]] = {'default': _by_products}
    return ways | ({'cuda': _by_cudnn} if fused else {})


@jax.custom_vjp
def _scores(q: Heads, k: Heads) -> AttentionMap:
    """q k' / sqrt(width) in float32. The gradient, a map of N x N, reaches its products in the dtype of q and k, as
    other gradients do: in float32 it would be read in twice the bytes, and multiplied at half the rate.
    """
    return _products(q, k, jnp.float32)


def _products(q: Heads, k: Heads, dtype: DTypeLike) -> AttentionMap:
    return jnp.einsum('bqhd,bkhd->bhqk', q * q.shape[-1] ** -0.5, k, preferred_element_type=dtype)


def _scores_backward(saved: tuple[Heads, Heads], gradient: AttentionMap) -> tuple[Heads, Heads]:
    dtype = saved[0].dtype
    return jax.vjp(lambda q, k: _products(q, k, dtype), *saved)[1](gradient.astype(dtype))


_scores.defvjp(lambda q, k: (_scores(q, k), (q, k)), _scores_backward)


def _weighted(weights: AttentionMap, v: Heads) -> Heads:
    return jnp.einsum('bhqk,bkhd->bqhd', weights, v)


def _by_products(q: Heads, k: Heads, v: Heads) -> Heads:
    return _weighted(jax.nn.softmax(_scores(q, k)).astype(v.dtype), v)


def _by_cudnn(q: Heads, k: Heads, v: Heads) -> Heads:
    tokens = q.shape[1]
    padded = (jnp.pad(a, ((0, 0), (0, tokens % 2), (0, 0), (0, 0))) for a in (q, k, v))
    lengths = jnp.full((q.shape[0],), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(*padded, query_seq_lengths=lengths, key_value_seq_lengths=lengths,
                                       implementation='cudnn')
    return out[:, :tokens]


def _fused_backward(saved, gradient):
    ways = {name: lambda q, k, v, g, f=f: jax.vjp(f, q, k, v)[1](g) for name, f in _ways(gradient.dtype).items()}
    return jax.lax.platform_dependent(*saved, gradient, **ways)


fused_attention.defvjp(lambda q, k, v: (fused_attention(q, k, v), (q, k, v)), _fused_backward)


class Attention(nn.Module):
    """Multi-head self-attention. x [B,N,d] -> x [B,N,d], probabilities float32 [B,heads,N,N].

    visible: bool [B,N] or None, the keys that may be attended to; every row needs at least one.
    offset: [B,heads,N,N] or None, added to the probabilities. Its gradient at zero is dz/dA.
    The probabilities are those after softmax, before `offset` and dropout: rows sum to 1. With `fused`, outputs by
    `fused_attention` wherever there is a kernel for it, all keys are visible and there is neither offset nor dropout.
    """
    heads: int
    dropout: float
    dtype: DTypeLike
    fused: bool = False

    @nn.compact
    def __call__(self, x: Tokens, train: bool, visible: Bool[Array, 'batch tokens'] | None = None,
                 offset: AttentionMap | None = None) -> tuple[Tokens, AttentionMap]:
        width = x.shape[-1]
        qkv = Dense(3 * width, dtype=self.dtype, name='qkv')(x)
        # split, not indexed: the gradient is then one concatenation, not a sum of three padded arrays
        q, k, v = (rearrange(part, 'b n (h d) -> b n h d', h=self.heads) for part in jnp.split(qkv, 3, -1))
        scores = _scores(q, k)
        if visible is not None:
            scores = jnp.where(visible[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        attention = jax.nn.softmax(scores)
        weights = attention if offset is None else attention + offset
        weights = nn.Dropout(self.dropout)(weights.astype(self.dtype), deterministic=not train)
        plain = visible is not None or offset is not None or (self.dropout and train)
        kernel = self.fused and not plain and len(_ways(self.dtype)) > 1
        x = fused_attention(q, k, v) if kernel else _weighted(weights, v)
        return Dense(width, dtype=self.dtype, name='proj')(rearrange(x, 'b n h d -> b n (h d)')), attention


class Mlp(nn.Module):
    """Linear to `ratio` times the width, exact GELU, linear back. x [B,N,d] -> x [B,N,d]."""
    ratio: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        hidden = Dense(self.ratio * x.shape[-1], dtype=self.dtype, name='fc1')(x)
        return Dense(x.shape[-1], dtype=self.dtype, name='fc2')(jax.nn.gelu(hidden, approximate=False))


class Block(nn.Module):
    """One pre-LN block. x [B,N,d] -> x [B,N,d], attention [B,heads,N,N] or None."""
    heads: int
    mlp: int
    dropout: float
    attention_dropout: float
    drop_path: float
    layer_scale: float
    eps: float
    dtype: DTypeLike
    fused: bool = False

    @nn.compact
    def __call__(self, x: Tokens, train: bool, return_attention: bool, visible: Bool[Array, 'batch tokens'] | None,
                 offset: AttentionMap | None) -> tuple[Tokens, AttentionMap | None]:
        y, attention = Attention(self.heads, self.attention_dropout, self.dtype, self.fused, name='attn')(
            LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm1')(x), train, visible, offset)
        x = x + self.branch(y, 'attn_scale', train)
        y = Mlp(self.mlp, self.dtype, name='mlp')(LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm2')(x))
        x = x + self.branch(y, 'mlp_scale', train)
        return x, (attention if return_attention else None)  # None: remat must not keep what nobody reads

    def branch(self, y: Tokens, name: str, train: bool) -> Tokens:
        """Dropout, layer scale and stochastic depth of a residual branch."""
        y = nn.Dropout(self.dropout)(y, deterministic=not train)
        if self.layer_scale:
            gamma = self.param(name, nn.initializers.constant(self.layer_scale), (y.shape[-1],))
            y = y * gamma.astype(y.dtype)
        # broadcasting over tokens and channels drops the whole branch of an example
        return nn.Dropout(self.drop_path, broadcast_dims=(1, 2))(y, deterministic=not train)


class Encoder(nn.Module):
    """Blocks and the final LayerNorm. tokens [B,N,d], CLS first -> dict:

    'block00', 'block01', ... [B,N,d] the state after each block, 'tokens_out' [B,N,d] the last one after the
    final LayerNorm, 'pooled' float32 [B,d] its CLS state, or with `mean_from` the LayerNorm of the mean of the last
    states from that token on. With capture=('attention',) also 'attention' float32 [B,depth,heads,N,N]. `offset`
    [B,heads,N,N] is added to the attention probabilities of the last block. `step` does a part alone: block `step`,
    which gives 'tokens', or at `depth` what comes after the blocks.
    """
    depth: int
    heads: int
    mlp: int = 4
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float = 0.0
    remat: bool = False
    dtype: DTypeLike = jnp.float32
    eps: float = 1e-6  # of every LayerNorm
    mean_from: int = 0
    fused: bool = False  # see Attention
    keep_products: bool = False  # with remat: results of dense layers are kept, norms, GELU and attention are not

    @nn.compact
    def __call__(self, x: Tokens, train: bool = False, capture: Sequence[str] = (),
                 visible: Bool[Array, 'batch tokens'] | None = None,
                 offset: AttentionMap | None = None, step: int | None = None) -> dict[str, Array]:
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.keep_products else None
        block = nn.remat(Block, static_argnums=(2, 3), policy=policy) if self.remat else Block  # self is argument 0
        states: dict[str, Array] = {}
        attention: list[Any] = []
        last = self.depth - 1
        for i in range(self.depth) if step is None else range(step, min(step + 1, self.depth)):
            name, drop_path = f'block{i:02d}', self.drop_path * i / max(last, 1)
            x, a = block(self.heads, self.mlp, self.dropout, self.attention_dropout, drop_path,
                         self.layer_scale, self.eps, self.dtype, self.fused, name=name)(
                x, train, 'attention' in capture, visible, offset if i == last else None)
            states[name] = x
            attention.append(a)
        if step is not None and step < self.depth:
            return {'tokens': x}
        norm = LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm')
        # two calls: when only the CLS state is read, the compiler drops the normalisation of all others
        pooled = jnp.mean(x[:, self.mean_from:], 1) if self.mean_from else x[:, 0]
        states |= {'tokens_out': norm(x), 'pooled': norm(pooled).astype(jnp.float32)}
        return states | ({'attention': jnp.stack(attention, axis=1)} if 'attention' in capture else {})


class Head(nn.Module):
    """Dropout, then linear in float32. pooled [B,d] -> logits [B,outputs]."""
    outputs: int
    dropout: float
    kernel_init: Callable = small_normal

    @nn.compact
    def __call__(self, pooled: Float[Array, 'batch width'], train: bool = False) -> Float[Array, 'batch outputs']:
        pooled = nn.Dropout(self.dropout)(pooled, deterministic=not train)
        return nn.Dense(self.outputs, kernel_init=self.kernel_init, name='linear')(pooled)


def with_logits(out: dict[str, Array], outputs: int, dropout: float, train: bool,
                kernel_init: Callable = small_normal) -> dict[str, Array]:
    """`out` with 'logits' [B,outputs] of the Head `head` on out['pooled'], unless outputs is 0; in a compact method."""
    head = Head(outputs, dropout, kernel_init, name='head') if outputs else None
    return out | {'logits': head(out['pooled'], train)} if head else out


def check_dropout(dropout: float) -> None:
    """ConfigError unless model.dropout is in [0, 1)."""
    if not 0 <= dropout < 1:
        raise errors.ConfigError(f'model.dropout = {dropout} must be in [0, 1).')


def check_shape(model: str, width: int, depth: int, heads: int) -> None:
    """Raise ConfigError unless `heads` divides `width` and all three are positive."""
    if min(width, depth, heads) < 1 or width % heads:
        raise errors.ConfigError(f'{model}: width {width} must be a positive multiple of heads {heads}, and '
                                 f'depth {depth} at least 1. Change width, depth or heads.')
