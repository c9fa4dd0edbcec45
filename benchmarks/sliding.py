"""A worker that predicts a volume by overlapping windows, with jaxkd or, with --monai, with MONAI.

    python benchmarks/sliding.py network|volume|identity [--monai] [--threads N] [--smoke]

The same volume, windows, overlap and Gaussian weights on both sides; networks with random weights:
    network    as many batches of one window as the volume has windows, through the network and nothing else
    volume     the whole volume to a label map: windows, network, weighted mean, argmax
    identity   the same with a function that returns its input (two classes): what windows and mean cost by themselves
jaxkd: models/unet.py and inference/sliding_window.py, of PYTHONPATH. MONAI: SlidingWindowInferer and its own residual
U-Net with the same channels and levels (DynUNet); it needs torch and monai alone, in an environment of its own. A whole
scan by the command: python -m benchmarks predict.
"""
import argparse

from resident import serve  # beside this script

VOLUME, WINDOW, OVERLAP, CHANNELS = (32, 192, 192), (16, 96, 96), 0.5, (8, 16, 32)
SMALL = (12, 24, 24), (8, 16, 16)
WINDOWS = 27  # of VOLUME, as many as of SMALL, whose sides have three windows, too
MODEL = dict(name='unet', dims=3, channels=CHANNELS, blocks=(1, 1, 1), strides=(2,), block='residual', down='stride',
             up='transpose', norm='instance', activation='leaky', bias=False)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('case', choices=('network', 'volume', 'identity'))
    parser.add_argument('--mode')
    parser.add_argument('--monai', action='store_true')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--smoke', action='store_true')
    args = parser.parse_args()
    volume, window = SMALL if args.smoke else (VOLUME, WINDOW)
    try:
        case, facts = (monai if args.monai else ours)(args.case, volume, window, args.threads)
    except ImportError as e:
        serve(lambda _: None, left_out=f'{"MONAI" if args.monai else "jaxkd"} cannot be imported here ({e})')
        return
    serve(lambda repetitions: [case() for _ in range(repetitions)] and None, **facts)


def ours(case, shape, size, threads):
    """(what one repetition does, {'parameters': trained values of the network})."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import ConfigDict

    from jaxkd.inference import sliding_window
    from jaxkd.models import unet
    module, rng = unet.build(ConfigDict({**unet.DEFAULTS, **MODEL}), 2, jnp.float32), np.random.default_rng(0)
    volume = rng.normal(size=(*shape, 1)).astype(np.float32)
    window = {'image': np.ascontiguousarray(volume[tuple(map(slice, size))][None])}
    variables = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.1, a.shape), a.dtype),
                             jax.eval_shape(module.init, jax.random.key(0), window))
    network = jax.jit(lambda variables, x: {'logits': module.apply(variables, x)['logits']})

    def slide(apply, x):
        slabs = sliding_window.stream(apply, {'image': x}, size, overlap=OVERLAP)
        return sliding_window.labels(slabs, shape)[0]
    two = np.repeat(volume, 2, -1)
    assert len(sliding_window.windows(shape, size, OVERLAP)) == WINDOWS
    cases = dict(network=lambda: [jax.block_until_ready(network(variables, window)) for _ in range(WINDOWS)],
                 volume=lambda: slide(lambda x: network(variables, x), volume),
                 identity=lambda: slide(lambda x: {'logits': x['image']}, two))
    return cases[case], dict(parameters=sum(a.size for a in jax.tree.leaves(variables)))


def monai(case, shape, size, threads):
    """As `ours`, and {'torch', 'monai': version}."""
    import torch
    from monai import __version__ as version
    from monai.inferers import SlidingWindowInferer
    from monai.networks.nets import DynUNet
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), CHANNELS, res_block=True).eval()
    infer = SlidingWindowInferer(size, 1, OVERLAP, 'gaussian', sigma_scale=0.125)
    x = torch.randn(1, 1, *shape)
    window, two = x[(slice(None), slice(None), *map(slice, size))].contiguous(), x.repeat(1, 2, 1, 1, 1)
    cases = dict(network=lambda: [net(window) for _ in range(WINDOWS)],
                 volume=lambda: infer(x, net).argmax(1).to(torch.uint8),
                 identity=lambda: infer(two, lambda a: a).argmax(1).to(torch.uint8))
    return torch.inference_mode()(cases[case]), dict(parameters=sum(p.numel() for p in net.parameters()),
                                                     torch=torch.__version__, monai=version)


if __name__ == '__main__':
    main()
