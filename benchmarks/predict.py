"""The command jaxkd.predict beside the work that it cannot avoid, in processor time, and its memory and starts.

    python -m benchmarks predict [--only volume,images,start] [--whole 300,512,512] [--window 32,128,128]
                                 [--images 1000] [--starts 5] [--other TREE]

volume   a CT-like scan as .nii.gz through an untrained small U-Net: peak memory of the command (the largest resident
         set, as the kernel counted it), and its time less that of a scan of one window, beside the bare network on as
         many windows
images   radiograph-like PNG of 1024 x 1024 through an untrained ViT: the command within one process, beside decoding
         and preparing alone plus the network alone on as many batches
start    --help; the first prediction of a picture, and of a scan of one window, with an empty cache of programs, then
         once more, and so on, by a small network and by one of the size that is published; and what no start can go
         below, the import of jax. With --other, the starts of another tree too, in turn

Seconds are those of the processor (all threads), so that other programs do not count; of `start` the wall clock, too.
"""
import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
UNET = dict(name='unet', dims=3, channels=(8, 16, 32), blocks=(1, 1, 1), strides=(2,), block='residual', down='stride',
            up='transpose', norm='instance', activation='leaky', bias=False)
LARGE_UNET = UNET | dict(channels=(32, 64, 128, 256, 320, 320), blocks=(1, 2, 2, 2, 2, 2),
                         strides=(2, 2, 2, 2, (1, 2, 2)))  # of configs/cpmn_pe.py:large
VIT = dict(name='vit', size='tiny', patch=16)
DENSENET = dict(name='densenet', norm='group')  # DenseNet-121
BATCH = 32


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks predict', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='volume,images,start')
    parser.add_argument('--whole', default='300,512,512', help='z,y,x voxels of a scan')
    parser.add_argument('--window', default='32,128,128', help='z,y,x voxels')
    parser.add_argument('--starts', type=int, default=5, help='times that each start is measured')
    parser.add_argument('--images', type=int, default=1000)
    parser.add_argument('--other', metavar='TREE', help='of another commit, whose starts are measured in turn')
    args = parser.parse_args(argv)
    args.whole, args.window = (tuple(int(n) for n in text.split(',')) for text in (args.whole, args.window))
    os.environ.update(JAX_PLATFORMS='cpu')
    for name in args.only.split(','):
        with tempfile.TemporaryDirectory() as folder:
            {'volume': volume, 'images': images, 'start': start}[name](args, pathlib.Path(folder))


def volume(args, folder):
    import numpy as np

    from jaxkd.inference import sliding_window
    from jaxkd.inference.deployed import load
    for name, shape in (('scan', args.whole), ('one', args.window)):
        write_scan(folder / f'{name}.nii.gz', shape)
    write_unet(folder / 'run', args.window)
    used = {}
    for name in ('one', 'one', 'scan'):  # the first compiles
        _, used[name], peak = command('--run', folder / 'run', '--input', folder / f'{name}.nii.gz', '--output',
                                      folder / name, '--restart')
    count = len(sliding_window.windows(args.whole, args.window, 0.5))
    apply = load(str(folder / 'run')).model.windows()
    window = {'nct': np.random.default_rng(0).integers(-400, 800, (1, *args.window, 1)).astype(np.int16)}
    np.asarray(apply(window)['logits'])
    begin = time.process_time()
    for _ in range(min(count, 100)):
        np.asarray(apply(window)['logits'])
    network = (time.process_time() - begin) * (count - 1) / min(count, 100)
    spent = used['scan'] - used['one']
    print(f'volume {args.whole}, {count} windows of {args.window}: command {used["scan"]:.1f} s, less one window '
          f'{spent:.1f} s; network {network:.1f} s: {network / spent:.2f} of it; peak {peak:.2f} GiB', flush=True)


def images(args, folder):
    import numpy as np
    from PIL import Image

    from jaxkd import predict
    from jaxkd.inference import case_reader
    from jaxkd.inference.case_files import CaseFiles
    from jaxkd.inference.deployed import load
    rng = np.random.default_rng(0)
    (folder / 'in').mkdir()
    base = np.clip(rng.normal(120, 12, (1024, 1024)).cumsum(0) / np.arange(1, 1025)[:, None], 0, 255).astype(np.uint8)
    for i in range(min(50, args.images)):
        Image.fromarray(np.roll(base, 13 * i) + rng.integers(0, 9, base.shape, np.uint8)).save(folder / f'{i}.png')
    for i in range(args.images):
        os.link(folder / f'{i % 50}.png', folder / 'in' / f'{i}.png')
    write_classifier(folder / 'run')
    options = ['--run', str(folder / 'run'), '--input', str(folder / 'in'), '--output', str(folder / 'out'),
               '--restart', '--batch', str(BATCH)]
    network = load(str(folder / 'run'))
    batch = {'image': rng.random((BATCH, 224, 224, 1), np.float32)}
    np.asarray(network.model.predict_batch(batch)['logits'])
    spent = []
    for work in (lambda: predict.main(options),
                 lambda: [case_reader.read(network, CaseFiles(str(i), {'image': str(folder / 'in' / f'{i}.png')}))
                          for i in range(args.images)],
                 lambda: [np.asarray(network.model.predict_batch(batch)['logits'])
                          for _ in range(-(-args.images // BATCH))]):
        begin, wall = time.process_time(), time.perf_counter()
        work()
        spent.append((time.process_time() - begin, time.perf_counter() - wall))
    (whole, wall), (decode, _), (net, _) = spent
    print(f'{args.images} pictures: command {whole:.1f} s (wall {wall:.1f} s), decode {decode:.1f} s, network '
          f'{net:.1f} s: {(decode + net) / whole:.2f} of decode + network', flush=True)


def start(args, folder):
    import numpy as np
    from PIL import Image
    for name, model in (('vit', VIT), ('densenet', DENSENET)):
        write_classifier(folder / name, model, 1)  # a tested run takes a batch of one for one picture
        Image.fromarray(np.zeros((512, 512), np.uint8)).save(folder / f'{name}.png')
    for name, model in (('unet', UNET), ('large_unet', LARGE_UNET)):
        write_unet(folder / name, args.window, model)
        write_scan(folder / f'{name}.nii.gz', args.window)
    helps = [command('--help')[0] for _ in range(3)]
    floor = [timed_program('import jax') for _ in range(3)]
    print(f'start: --help {min(helps):.2f} s; import of jax {min(floor):.2f} s', flush=True)
    trees = {'this tree': ROOT} | ({'other tree': pathlib.Path(args.other).resolve()} if args.other else {})
    for name in ('vit.png', 'densenet.png', 'unet.nii.gz', 'large_unet.nii.gz'):
        options = ('--run', folder / name.partition('.')[0], '--input', folder / name, '--output', folder / 'out')
        spent = np.array([[[command(*options, '--restart', cache=folder / f'{name}_{i}_{j}', tree=tree)[:2]
                            for _ in range(2)] for j, tree in enumerate(trees.values())] for i in range(args.starts)])
        for tree, times in zip(trees, np.median(spent, axis=0)):  # [without and with kept programs, wall and processor]
            for kind, (cold, warm) in zip(('wall', 'processor'), times.T):
                print(f'start, {name}, {tree}: first prediction {cold:.2f} s {kind}, then {warm:.2f} s: '
                      f'{warm / cold:.2f}; median of {args.starts}', flush=True)


def timed_program(text):
    begin = time.perf_counter()
    subprocess.run([sys.executable, '-c', text], check=True)
    return time.perf_counter() - begin


def command(*options, cache=None, tree=ROOT):
    """(wall seconds, processor seconds, peak GiB of all commands so far) of the command."""
    env = dict(os.environ, PYTHONPATH=str(tree)) | ({'XDG_CACHE_HOME': str(cache)} if cache else {})
    env.pop('PYTHONDONTWRITEBYTECODE', None)  # or each start compiles all of Python's files anew
    if cache:
        env.pop('JAX_COMPILATION_CACHE_DIR', None)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, '-m', 'jaxkd.predict', *map(str, options)], check=True, env=env, cwd=tree,
                   stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, used, after.ru_maxrss / 2**20


def write_scan(path, shape):
    import nibabel
    import numpy as np
    x, y, z = np.ogrid[tuple(slice(-1, 1, k * 1j) for k in shape[::-1])]
    voxels = np.where(x**2 + y**2 < 0.8, 40 + 30 * np.sin(5 * x) * np.cos(4 * y) + 10 * z, -1000).astype(np.int16)
    voxels += np.random.default_rng(0).integers(-20, 20, voxels.shape, np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.75, 0.75, 1.0, 1.0])), path)


def write_unet(folder, window, model=UNET):
    import numpy as np
    write_stage(folder, dict(source=dict(name='paired'), transforms=('scan',), augment=('patch',),
                             patch=dict(keys=('nct',), size=window[::-1]),
                             scan=dict(keys=('nct',), spacing=(0.0, 0.0, 0.0), windows=((-100.0, 200.0),))),
                dict(inputs=('nct',), model=model, method=dict(name='segmentation'), batch=1,
                     evals=dict(segmentation={})),
                {'nct': np.zeros((1, *window, 1), np.int16)}, ('background', 'lesion'))


def write_classifier(folder, model=VIT, batch=BATCH):
    import numpy as np
    write_stage(folder, dict(source=dict(name='folder'), transforms=('image',), image=dict(size=224, fit='letterbox')),
                dict(inputs=('image',), model=model, batch=batch, evals=dict(classification={})),
                {'image': np.zeros((1, 224, 224, 1), np.float32)}, tuple('abcdefgh'))


def write_stage(folder, data, student, batch, labels):
    """The checkpoints of an untrained student."""
    import jax
    import numpy as np
    from ml_collections import ConfigDict

    from jaxkd import checkpoint, config, networks
    from jaxkd.state import TrainState
    run = config.resolve(ConfigDict(dict(stages=('student',), data=data, student=student)))
    hp, rng = run.student, np.random.default_rng(0)
    network = networks.build(hp, hp.dtype, len(labels), batch, run.data, 'student')
    # small weights at random: a program that draws good ones takes longer to compile than the network
    params = jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32),
                          jax.eval_shape(network.init, jax.random.key(0), batch)['params'])
    saver = checkpoint.Checkpointer(folder / 'checkpoints' / 'student')
    saver.write_metadata(json.loads(json.dumps(dict(config=hp.to_dict(), data=run.data.to_dict(), labels=labels,
                                                    assets={}))))
    saver.save(1, TrainState(np.int32(1), {'student': params}, {'student': {}}, {}, {}, {}, {}), {}, 1.0)
    saver.close()
