"""Volumes per second from disk to batch, for one core.

    python -m benchmarks volumes [--size 224,224,32] [--n 64] [--folder DIR]

Makes `n` CT-like .nii.gz files, prepares them (jaxkd.data.prepare), then times, all in one run and on one core,
    floor    the bytes of a random crop copied from the memory map into a fresh array: no framework
    store    the same through store[i] and the transform `crop`
    stream   batches of 4 from the training stream (grain, threads): + crop, + rotate_flip, + intensity, + affine3d
    files    without prepare: read, resample, crop, each time
    MONAI    what compares of it (CacheDataset in memory, PersistentDataset on disk, plain Dataset), where it is
             installed

The page cache is warm for all: each is run once before it is timed. Seconds are those of the processor (all threads of
this process), so that other programs on the core do not count. Medians over repeats, with the range.
"""
import argparse
import os
import pathlib
import statistics
import tempfile
import time

BATCH = 4


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks volumes', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--size', default='224,224,32', help='of a crop, x,y,z voxels')
    parser.add_argument('--margin', default='16,16,4', help='voxels that the stored volume is larger')
    parser.add_argument('--n', type=int, default=64, help='cases')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2, help="of the stream's readers")
    parser.add_argument('--core', type=int, default=0)
    parser.add_argument('--folder', help='where to keep files between runs (default: a temporary folder)')
    args = parser.parse_args(argv)
    os.sched_setaffinity(0, {args.core})  # before libraries count cores
    os.environ.update(JAX_PLATFORMS='cpu', OMP_NUM_THREADS='1')
    size, margin = (tuple(map(int, text.split(','))) for text in (args.size, args.margin))
    with tempfile.TemporaryDirectory() as temporary:
        run(args, size, margin, pathlib.Path(args.folder or temporary))


def run(args, size, margin, folder):
    import numpy as np

    from jaxkd.data import loader, pool, prepare
    from jaxkd.data.transforms import crop
    whole = tuple(a + b for a, b in zip(size, margin))
    root = folder / f'files_{args.n}_{"x".join(map(str, whole))}'
    make_files(root, whole, args.n)
    out = folder / f'store_{args.n}_{"x".join(map(str, size))}_{"x".join(map(str, whole))}'

    def config(augment, **more):
        return data_config(root, size, margin, args.threads, augment, **more)
    hp = config(('crop',))
    made = prepare.prepare(hp, out)
    mib = 2 * np.prod(size) / 2**20
    print(f'core {args.core} of {os.cpu_count()}, {args.n} cases int16 {whole} = {made.nbytes / 2**20:.0f} MiB, crops '
          f'{size} = {mib:.2f} MiB, page cache warm, processor time, medians of {args.repeats} (range)')

    rng = np.random.default_rng(0)
    order, volumes = rng.permutation(args.n), made.arrays['ct']
    cut = crop.build(hp.crop).apply
    w, h, d = size

    def floor():
        for i, x, y, z in zip(order, *(rng.integers(0, m + 1, args.n) for m in margin)):
            np.array(volumes[i, z:z + d, y:y + h, x:x + w])

    def through_store():
        for i in order:
            np.array(cut(made[i], rng)['ct'])

    base = timed('floor: memory map to fresh arrays', floor, args)
    timed('store[i] + crop', through_store, args, base)
    for names in (('crop',), ('crop', 'rotate_flip'), ('crop', 'rotate_flip', 'intensity'), ('crop', 'affine3d')):
        data = pool.build(config(names, cache='disk', folder=str(out)))
        feeder = loader.train_loader(data, BATCH, seed=0)
        timed(f'stream, batches of {BATCH}: {" + ".join(names)}',
              lambda f=feeder: [next(f) for _ in range(args.n // BATCH)],
              args, base)
        feeder.close()
    data = pool.build(hp)
    some = order[:max(4, args.n // 8)]
    timed('files: .nii.gz, read + resample + crop', lambda: [cut(data.prepared(i), rng) for i in some], args, base,
          len(some))
    monai(root, size, whole, args, base)


def timed(what, f, args, base=None, count=None):
    """Print volumes/s of f, which handles `count` volumes; -> the median."""
    f()  # warm
    speeds = []
    for _ in range(args.repeats):
        begin = time.process_time()
        f()
        speeds.append((count or args.n) / (time.process_time() - begin))
    median = statistics.median(speeds)
    share = f'{100 * median / base:6.1f} % of the floor' if base else ''
    print(f'{what:62s}{median:9.1f} /s  ({min(speeds):.0f} to {max(speeds):.0f}) {share}', flush=True)
    return median


def make_files(root, whole, n):
    """Noise over a smooth body, at about the resolution of the crop, as int16 HU in .nii.gz."""
    import numpy as np

    from jaxkd.data import volume
    if (root / 'cases.csv').exists():
        return
    rng = np.random.default_rng(0)
    shape = tuple(k + 8 for k in whole)
    x, y, z = np.ogrid[tuple(slice(-1, 1, k * 1j) for k in shape)]
    body = np.where(x**2 + y**2 < 0.8, 40 + 30 * np.sin(5 * x) * np.cos(4 * y) + 10 * z, -1000)
    affine = np.diag([0.78, 0.78, 3.0, 1.0])
    for i in range(n):
        (root / f'c{i}').mkdir(parents=True, exist_ok=True)
        voxels = (body + rng.normal(0, 12, shape)).astype(np.int16)
        volume.save(root / f'c{i}' / 'ct.nii.gz', voxels, volume.Volume(voxels, affine))
    rows = [f'c{i},p{i},{i % 3}' for i in range(n)]
    (root / 'cases.csv').write_text('\n'.join(('case_id,patient_id,cls', *rows)))


def data_config(root, size, margin, threads, augment, **more):
    from ml_collections import ConfigDict

    from jaxkd import config
    return config.resolve(ConfigDict(dict(data={**dict(
        source=dict(name='paired', root=str(root), modalities=('ct',), tasks=(), classes=()), transforms=('volume',),
        augment=augment, split=dict(fractions=(1.0, 0.0, 0.0)), volume=dict(keys=('ct',), size=size, margin=margin),
        crop=dict(keys=('ct',), size=size), rotate_flip=dict(keys=('ct',)), intensity=dict(keys=('ct',)),
        affine3d=dict(keys=('ct',)), cache='none', threads=threads), **more}))).data


def monai(root, size, whole, args, base):
    try:
        import torch
        from monai import data
        from monai import transforms as t
    except ImportError as e:
        print(f'MONAI: left out, it cannot be imported here ({e})')
        return
    torch.set_num_threads(1)
    fixed = [t.LoadImaged('ct', reader='NibabelReader', image_only=True), t.EnsureChannelFirstd('ct'),
             t.Orientationd('ct', axcodes='RAS', labels=None), t.Spacingd('ct', (0.8, 0.8, 3.0), mode='bilinear'),
             t.ScaleIntensityRanged('ct', -160, 240, 0, 1, clip=True), t.ResizeWithPadOrCropd('ct', whole)]
    cut = [t.RandSpatialCropd('ct', size, random_size=False)]
    turn = [t.RandRotate90d('ct', prob=0.5, spatial_axes=(0, 1)), t.RandFlipd('ct', prob=0.5, spatial_axis=0)]
    change = [t.RandScaleIntensityd('ct', 0.2, prob=1.0)]
    files = [{'ct': str(root / f'c{i}' / 'ct.nii.gz')} for i in range(args.n)]

    def loop(dataset):
        loader = data.DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)
        return lambda: [batch['ct'] for batch in loader]
    for name, more in (('crop', cut), ('crop + rotate_flip', cut + turn),
                       ('crop + rotate_flip + intensity', cut + turn + change)):
        cached = data.CacheDataset(files, t.Compose(fixed + more), num_workers=1, progress=False)
        timed(f'MONAI CacheDataset (memory, float32), batches: {name}', loop(cached), args, base)
        del cached
    with tempfile.TemporaryDirectory() as folder:
        kept = data.PersistentDataset(files, t.Compose(fixed + cut + turn), cache_dir=folder)
        timed('MONAI PersistentDataset (disk), batches: crop + rotate_flip', loop(kept), args, base)
    some = files[:max(4, args.n // 8)]
    plain = data.Dataset(some, t.Compose(fixed + cut))
    timed('MONAI Dataset: .nii.gz, read + resample + crop, batches', loop(plain), args, base, len(some))


if __name__ == '__main__':
    main()
