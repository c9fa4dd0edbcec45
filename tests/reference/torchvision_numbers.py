"""What torchvision's networks say, as numbers: python tests/reference/torchvision_numbers.py writes
tests/reference/torchvision_numbers.json.

The weights follow from their names by `values`, so that only outputs are stored, computed in float64. Needs torch and
torchvision; the tests read the file and need neither.
"""
import json
import pathlib
import zlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix('.json')
SMALL = dict(growth_rate=8, block_config=(2, 3, 2), num_init_features=16)  # a DenseNet that compiles in seconds
CASES = {  # name -> torchvision's function, its options, shape of the input
    'resnet18': ('resnet18', {}, (2, 3, 64, 64)),
    'resnet50': ('resnet50', {}, (2, 3, 96, 96)),
    'alexnet': ('alexnet', {}, (2, 3, 96, 80)),
    'densenet121': ('densenet121', {}, (2, 3, 64, 64)),
    'densenet_small': ('DenseNet', SMALL, (2, 3, 45, 64)),
}
CLASSES = 10


def uniform(seed, count):
    """count numbers in [-1, 1) by an integer hash of (seed, index): the same wherever they are computed."""
    h = (np.arange(count, dtype=np.uint32) + np.uint32(zlib.crc32(seed.encode()))) * np.uint32(2654435761)
    h ^= h >> np.uint32(16)
    h *= np.uint32(2246822519)
    h ^= h >> np.uint32(13)
    return (h / 2.0 ** 31 - 1).astype(np.float32)


def values(name, shape):
    """The tensor of that name: kernels of variance 2 / fan in, all else near its usual value."""
    u = uniform(name, int(np.prod(shape))).reshape(shape)
    if len(shape) > 1:
        return u * np.float32(np.sqrt(6 / np.prod(shape[1:])))
    if name.endswith(('running_mean', 'bias')):
        return 0.1 * u
    return 1 + 0.2 * u  # weights of norms, running variances


def picture(name, shape):
    """A batch [B,C,H,W] in [0,1)."""
    return (uniform(name, int(np.prod(shape))).reshape(shape) + 1) / 2


def sample(x):
    """What is kept of an array [B,C,...]: mean, mean of absolutes, and 8 values from everywhere."""
    flat = np.asarray(x, np.float64).ravel()
    return [*map(float, (flat.mean(), np.abs(flat).mean(), *flat[np.linspace(0, flat.size - 1, 8).astype(int)]))]


def main():
    import torch
    import torchvision
    found = dict(torch=torch.__version__, torchvision=torchvision.__version__)
    for case, (function, options, shape) in CASES.items():
        model = getattr(torchvision.models, function)(num_classes=CLASSES, **options).double()
        weights = {k: torch.from_numpy(values(k, v.shape)) for k, v in model.state_dict().items() if v.ndim}
        x = torch.from_numpy(picture(case, shape)).double()
        if 'resnet' in case:
            taps = {f'layer{i}': f'layer{i}' for i in range(1, 5)}
        elif case == 'alexnet':
            taps = {f'conv{i}': f'features.{at}' for i, at in enumerate((1, 4, 7, 9, 11), 1)}  # the activations
        else:
            blocks = len(options.get('block_config', range(4)))
            taps = {f'block{i}': f'features.denseblock{i}'
                    for i in range(1, blocks)} | {f'block{blocks}': 'features.norm5'}
        seen = {}
        for tap, where in taps.items():
            def keep(module, inputs, out, seen=seen, tap=tap, last=where == 'features.norm5'):
                seen[tap] = np.maximum(out.numpy(), 0) if last else out.numpy().copy()
            model.get_submodule(where).register_forward_hook(keep)
        found[case] = {}
        for mode in ('eval', 'train') if case != 'alexnet' else ('eval',):
            model.load_state_dict(weights, strict=False)
            model.train(mode == 'train')
            with torch.no_grad():
                seen['logits'] = model(x).numpy()
            found[case][mode] = {k: sample(v) for k, v in seen.items()}
            if mode == 'train':
                stats = [k for k in weights if 'running_mean' in k]
                state = model.state_dict()
                found[case]['means'] = {k: sample(state[k].numpy()) for k in (stats[0], stats[-1])}
    FILE.write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
    main()
