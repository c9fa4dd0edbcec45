"""Windows per second of jaxkd.inference.sliding_window beside MONAI's SlidingWindowInferer.

    python -m benchmarks sliding [--volume 64,192,192] [--window 16,96,96] [--overlap 0.5] [--cores 0]

All in one run, on the same cores and threads, the same volume, windows, overlap and Gaussian weights:
    network     batches of one window through the network, nothing else
    sliding     the whole volume to a label map: windows, network, weighted mean, argmax
    identity    the same with a function that returns its input (two classes): what windows and mean cost by themselves
for jaxkd and for MONAI with its own residual U-Net of the same levels (DynUNet), where torch and monai are installed.
Seconds are those of the processor (all threads of this process), so that other programs on the cores do not count.
Medians over repeats, with the range. A whole scan by the command: python -m benchmarks predict.
"""
import argparse
import os
import pathlib
import statistics
import sys
import time

CHANNELS = (8, 16, 32)
MODEL = dict(name='unet', dims=3, channels=CHANNELS, blocks=(1, 1, 1), strides=(2,), block='residual', down='stride',
             up='transpose',
             norm='instance', activation='leaky', bias=False)


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks sliding', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--volume', default='64,192,192', help='z,y,x voxels')
    parser.add_argument('--window', default='16,96,96', help='z,y,x voxels')
    parser.add_argument('--overlap', type=float, default=0.5)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--cores', default='0', help='to run on, as many threads as cores')
    args = parser.parse_args(argv)
    args.cores = sorted({int(n) for n in args.cores.split(',')})
    args.volume, args.window = (tuple(int(n) for n in text.split(',')) for text in (args.volume, args.window))
    os.sched_setaffinity(0, args.cores)  # before libraries count cores
    os.environ.update(JAX_PLATFORMS='cpu', OMP_NUM_THREADS=str(len(args.cores)))
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    run(args)


def run(args):
    import numpy as np

    from jaxkd.inference import sliding_window
    count = len(sliding_window.windows(args.volume, args.window, args.overlap))
    print(f'cores {args.cores} of {os.cpu_count()}, volume {args.volume}, {count} windows of {args.window}, overlap '
          f'{args.overlap:g}, Gaussian weights, processor time, medians of {args.repeats} (range)')
    volume = np.random.default_rng(0).normal(size=(*args.volume, 1)).astype(np.float32)
    ours(volume, args, count)
    monai(volume, args, count)


def ours(volume, args, count):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from ml_collections import ConfigDict

    from jaxkd.inference import sliding_window
    from jaxkd.models import unet
    module = unet.build(ConfigDict({**unet.DEFAULTS, **MODEL}), 2, jnp.float32)
    window = {'image': np.ascontiguousarray(volume[tuple(map(slice, args.window))][None])}
    variables = weights(jax.eval_shape(module.init, jax.random.key(0), window))
    apply = jax.jit(lambda x: {'logits': module.apply(variables, x)['logits']})

    def slide(apply, x):
        slabs = sliding_window.stream(apply, {'image': x}, args.window, overlap=args.overlap)
        return sliding_window.labels(slabs, args.volume)[0]
    print(f'jaxkd, models/unet.py: {sum(a.size for a in jax.tree.leaves(variables)):,} parameters')
    base = timed('  network', lambda: [jax.block_until_ready(apply(window)) for _ in range(count)], args, count)
    timed('  sliding', lambda: slide(apply, volume), args, count, base)
    two = np.repeat(volume, 2, -1)
    timed('  identity', lambda: slide(lambda x: {'logits': x['image']}, two), args, count)


def weights(spec):
    """Small random weights: a program that draws good ones takes longer to compile than the network."""
    import jax
    import numpy as np
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32), spec)


def monai(volume, args, count):
    try:
        import torch
        from monai.inferers import SlidingWindowInferer
        from monai.networks.nets import DynUNet
    except ImportError as e:
        print(f'MONAI: left out, it cannot be imported here ({e})')
        return
    torch.set_num_threads(len(args.cores))
    net = DynUNet(3, 1, 2, (3, 3, 3), (1, 2, 2), (2, 2), CHANNELS, res_block=True).eval()
    infer = SlidingWindowInferer(args.window, 1, args.overlap, 'gaussian', sigma_scale=0.125)
    x = torch.from_numpy(volume[..., 0][None, None])
    window, two = x[(slice(None), slice(None), *map(slice, args.window))].contiguous(), x.repeat(1, 2, 1, 1, 1)
    print(f'MONAI, DynUNet: {sum(p.numel() for p in net.parameters()):,} parameters')
    with torch.inference_mode():
        base = timed('  network', lambda: [net(window) for _ in range(count)], args, count)
        timed('  sliding', lambda: infer(x, net).argmax(1).to(torch.uint8), args, count, base)
        timed('  identity', lambda: infer(two, lambda a: a).argmax(1).to(torch.uint8), args, count)


def timed(what, f, args, count, base=None):
    """Print windows/s of f, which handles `count` of them; -> the median."""
    f()  # warm
    speeds = []
    for _ in range(args.repeats):
        begin = time.process_time()
        f()
        speeds.append(count / (time.process_time() - begin))
    median = statistics.median(speeds)
    share = f'{100 * median / base:6.1f} % of the network' if base else ''
    print(f'{what:12s}{median:9.2f} windows/s  ({min(speeds):.2f} to {max(speeds):.2f}) {share}', flush=True)
    return median


if __name__ == '__main__':
    main()
