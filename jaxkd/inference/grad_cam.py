"""Grad-CAM (Selvaraju et al., ICCV 2017 [published]): where a convolutional network finds evidence for a class.

    a_kc = mean over places of d logit_c / d A_k,  map_c = relu(sum_k a_kc A_k)

A [B,h,w,K] is an output of the network that a layer of it returns: `features`, or the last map. The gradient is taken
with respect to an offset that is added to what this layer returns, so the model needs nothing for it. For a network
whose logits are linear in the mean of A it is the class activation map of Zhou et al. (CVPR 2016), over h w.
"""
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd import errors, parallel
from jaxkd.networks import Network


def layer_of(network: Network, batch: Mapping[str, Any], output: str = '') -> tuple[str, tuple[str, ...]]:
    """(an output of the network, [B,h,w,K], the path of the layer that returns it). Nothing is computed.

    output: '' takes `features`, or without it the last one over places. ConfigError where there is none, and where no
    layer returns it.
    """
    maps = [name for name, a in network.output_shapes(batch).items() if a.ndim == 4]
    if output and output not in maps or not maps:
        raise errors.ConfigError(f'The network gives no map "{output or "features"}" [B,h,w,C].'
                                 f'{errors.nearest(output, maps) if output else ""}')
    output = output or ('features' if 'features' in maps else maps[-1])
    returned: list[tuple[tuple[str, ...], Any]] = []

    def run(variables: Any, batch: Any) -> None:
        with nn.intercept_methods(functools.partial(_listen, returned)):
            network.apply(variables, batch)
        wanted = next(value for path, value in returned if not path)[output]
        paths[:] = [path for path, value in returned if path and value is wanted]
    paths: list[tuple[str, ...]] = []
    one = {key: jax.ShapeDtypeStruct((1, *batch[key].shape[1:]), batch[key].dtype) for key in network.inputs}
    jax.eval_shape(run, network.variable_shapes(one), one)
    if not paths:
        raise errors.ConfigError(f'No layer of the network returns "{output}" as it is. Choose another map, and '
                                 'model.remat=False.')
    return output, paths[-1]


@functools.lru_cache(maxsize=8)
def function(network: Network, output: str, path: tuple[str, ...], labels: tuple[int, ...]
             ) -> Callable[..., dict[str, jax.Array]]:
    """(variables, inputs) -> {'features': A [B,h,w,K], 'gradient': d logit_c / d A [B,labels,h,w,K]}."""
    def both(variables: dict, inputs: dict) -> dict[str, jax.Array]:
        shape = jax.eval_shape(lambda v, i: network.apply(v, i)[0][output], variables, inputs)

        def logits(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
            with nn.intercept_methods(functools.partial(_add, path, offset)):
                out, _ = network.apply(variables, inputs)
            return out['logits'][:, jnp.array(labels)].sum(0), out[output]
        _, back, maps = jax.vjp(logits, jnp.zeros(shape.shape), has_aux=True)
        return dict(features=maps, gradient=jax.vmap(back, out_axes=1)(jnp.eye(len(labels)))[0])
    return parallel.jit_sharded(both)


def _listen(returned: list, following: Callable, args: tuple, kwargs: Mapping[str, Any], context: Any) -> Any:
    out = following(*args, **kwargs)
    if context.method_name == '__call__':
        returned.append((tuple(context.module.path), out))
    return out


def _add(path: Sequence[str], offset: jax.Array, following: Callable, args: tuple, kwargs: Mapping[str, Any],
         context: Any) -> Any:
    out = following(*args, **kwargs)
    here = context.method_name == '__call__' and tuple(context.module.path) == tuple(path)
    return out + offset.astype(out.dtype) if here else out
