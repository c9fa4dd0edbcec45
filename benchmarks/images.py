"""Images per second from disk to batch, for one core.

    python -m benchmarks images [--n 512] [--size 224] [--side 1024] [--torch PYTHON]

Makes `n` radiograph-like files of side x side pixels, PNG and JPEG in turns, with reports and some boxes, prepares them
(jaxkd.data.prepare), then times epochs in batches of 32, all in one run, with one thread on one core and with two on
two,
    floor    the prepared bytes read and decoded (k/255) into a fresh batch, with labels and boxes: no framework
    store    the same through Store.batch
    stream   batches from the training stream (grain, threads); + text: reports are tokenised after the cache, and the
             floor too calls the transform for each; + affine: augmented
    files    without prepare: the floor decodes and resizes each file with Pillow alone; the stream likewise
    torch    a PyTorch DataLoader in this process that does the same from the same bytes, where torch is installed.
             --torch names another Python that has it

The page cache is warm for all: each is run once before it is timed. Seconds are those of the processor (all threads of
this process), so that other programs on the core do not count. The best of the repeats, their range, and the share of
the floor, which is measured in turns with what it is compared to.
"""
import argparse
import collections
import io
import os
import pathlib
import subprocess
import sys
import tempfile
import time

BATCH = 32
EPOCHS = 12  # of the fast ones, in one turn


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m benchmarks images', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--n', type=int, default=512, help='cases')
    parser.add_argument('--some', type=int, default=64, help='cases of them that are read from their files')
    parser.add_argument('--size', type=int, default=224, help='of the prepared image')
    parser.add_argument('--side', type=int, default=1024, help='of the files')
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--torch', default=sys.executable, help='the Python that has torch')
    parser.add_argument('--folder', help='where to keep files between runs (default: a temporary folder)')
    parser.add_argument('--torch-only', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.update(JAX_PLATFORMS='cpu', OMP_NUM_THREADS='1')
    if args.torch_only:
        return torch_rows(args, pathlib.Path(args.folder))
    with tempfile.TemporaryDirectory() as temporary:
        run(args, pathlib.Path(args.folder or temporary))


def run(args, folder):
    root, out = folder / f'files_{args.n}_{args.side}', folder / f'store_{args.n}_{args.side}_{args.size}'
    make_files(root, args.n, args.side)
    from jaxkd.data import prepare
    for threads in (1, 2):
        os.sched_setaffinity(0, range(threads))
        again = folder / f'again_{threads}'
        begin, used = time.perf_counter(), time.process_time()
        prepare.prepare(data_config(root, args, threads, ('image', 'labels')), out if threads == 2 else again)
        print(f'prepare, {threads} thread(s): {args.n / (time.perf_counter() - begin):.0f} images/s of the clock, '
              f'{args.n / (time.process_time() - used):.0f} of the processor (nothing where the store was there)',
              flush=True)
    print(f'{args.n} files of {args.side} x {args.side}, prepared {args.size} x {args.size}, batches of {BATCH}, page '
          f'cache warm, processor time, best of {args.repeats} (range), median share (range)')
    for threads in (1, 2):
        os.sched_setaffinity(0, range(threads))
        print(f'{threads} thread(s) on {threads} core(s)')
        one(args, root, out, threads)
    os.sched_setaffinity(0, {0})
    command = [args.torch, __file__, '--torch-only', '--folder', str(folder), *(f'--{k}={getattr(args, k)}' for k in (
        'n', 'some', 'size', 'side', 'repeats'))]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout.strip() if done.returncode == 0 else f'torch: left out ({done.stderr.strip().splitlines()[-1]})')


def one(args, root, out, threads):
    """Print the table for so many threads."""
    import concurrent.futures

    import numpy as np

    from jaxkd.data import loader, pool
    from jaxkd.data.stores import reader
    made, rng = reader.open(out), np.random.default_rng(0)
    order = rng.permutation(args.n)
    executor = concurrent.futures.ThreadPoolExecutor(threads)

    # as many batches as the stream keeps: each is a memory of its own
    ahead = collections.deque(maxlen=2 * threads + 2)

    def epoch(f, order=order):
        parts = [order[at:at + BATCH] for at in range(0, len(order), BATCH)]
        for batch in map(f, parts) if threads == 1 else executor.map(f, parts):
            ahead.append(batch)
        return len(order)

    def config(transforms, augment=(), **more):
        return data_config(root, args, threads, transforms, augment, **more)

    def stream(what, hp, batches, against, slow=False):
        data = Counted(pool.build(hp))
        feeder = loader.train_loader(data, BATCH, seed=0)

        def f():
            before = len(data.read)
            for _ in range(batches):
                next(feeder)
            seen = -1
            # few batches: until the buffers are full again
            while slow and (seen < len(data.read) or data.begun > len(data.read)):
                seen = len(data.read)
                time.sleep(0.2)
            return sum(data.read[before:])
        timed(what, f, args, against, clock=not slow)
        feeder.close()
    floor = Floor(out, args.size)

    def base():
        return sum(epoch(floor) for _ in range(EPOCHS))
    timed('floor: prepared bytes into batches', base, args)
    timed('Store.batch', lambda: sum(epoch(lambda rows: made.batch(rows, texts=False)) for _ in range(EPOCHS)), args,
          base)
    cached = dict(cache='disk', folder=str(out))
    text = pool.build(config(('image', 'labels', 'text'), **cached)).transforms.prepare[-1].apply

    def with_text():
        return epoch(lambda rows: (floor(rows), [text({'text': made.text(i)}) for i in rows]))
    timed('floor + text', with_text, args)
    for transforms, augment, batches, against in ((('image', 'labels'), (), 16 * EPOCHS, base),
                                                  (('image', 'labels', 'text'), (), 40, with_text),
                                                  (('image', 'labels'), ('affine',), 10, base)):
        stream(f'stream, prepared: {" + ".join((*transforms, *augment))}', config(transforms, augment, **cached),
               batches, against)
    names = [file for file in sorted(root.iterdir()) if file.suffix in ('.png', '.jpg')][:args.some]

    def slow():
        return epoch(lambda rows: [pillow(names[i], args.size) for i in rows], np.arange(len(names)))
    timed('floor: files decoded and resized by Pillow', slow, args)
    stream('stream, files: image + labels', config(('image', 'labels')), 4, slow, slow=True)


class Counted:
    """A Dataset that counts its cases: batches wait in buffers, so what was read counts, not what was taken."""

    def __init__(self, dataset):
        """begun: calls so far; read: [cases of each call that has ended]."""
        self.config, self.source, self.partition = dataset.config, dataset.source, dataset.partition
        self.transforms, self.dataset, self.begun, self.read = dataset.transforms, dataset, 0, []

    def prepared(self, i):
        return self._counted(self.dataset.prepared, i, 1)

    def batch(self, indices):
        return self._counted(self.dataset.batch, indices, len(indices))

    def _counted(self, call, argument, cases):
        self.begun += 1
        result = call(argument)
        self.read.append(cases)
        return result


class Floor:
    """The bytes of a store read and decoded, with nothing but numpy, ArrayRecord and msgpack."""

    def __init__(self, out, size):
        import grain
        import numpy as np
        self.np, self.size = np, size
        self.arrays = {name: np.asarray(np.load(out / f'{name}.npy', mmap_mode='r'))
                       for name in ('image', 'label', 'label_weight', 'kinds')}
        self.rest = grain.sources.ArrayRecordDataSource([str(path) for path in sorted(out.glob('*.array_record'))])

    def __call__(self, rows):
        from flax import serialization
        np, a = self.np, self.arrays
        image = np.empty((len(rows), self.size, self.size, 1), np.float32)
        boxes = np.full((len(rows), 16, 5), -2, np.float32)
        for j, i in enumerate(rows):
            np.divide(a['image'][i], np.float32(255), out=image[j])
            if a['kinds'][i] == 2:
                found = serialization.msgpack_restore(self.rest[i])['boxes']
                boxes[j, :len(found)] = found
        return image, a['label'][rows], a['label_weight'][rows], boxes


def timed(what, f, args, base=None, clock=True):
    """Print images/s of f, which says how many it handled: the best of the repeats, and the share of `base`, which
    takes turns with it, since other programs slow a processor down from minute to minute: the median over the turns.
    """
    def speed(f):
        time.sleep(0.3)  # until readers ahead have filled their buffers
        begin, used = time.perf_counter(), time.process_time()
        done = f()
        return done / (time.process_time() - used), done / (time.perf_counter() - begin)
    f()  # warm
    turns = [(speed(f), speed(base) if base else None) for _ in range(args.repeats)]
    speeds, clocks = zip(*(of for of, _ in turns))
    share = sorted(100 * of[0] / against[0] for of, against in turns if against)
    told = f'{share[len(share) // 2]:5.0f} % of the floor ({share[0]:.0f} to {share[-1]:.0f})' if share else ''
    print(f'  {what:46s}{max(speeds):8.0f} /s ({min(speeds):.0f} to {max(speeds):.0f}'
          f'{f"; by the clock {max(clocks):.0f}" if clock else ""}) {told}', flush=True)


def pillow(file, size):
    import numpy as np
    from PIL import Image
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), np.float32) / 255


def make_files(root, n, side):
    """Smooth bodies with noise, grey, 8 bits; 64 different ones, the others are links to them."""
    import numpy as np
    from PIL import Image
    if (root / 'cases.csv').exists():
        return
    root.mkdir(parents=True)
    y, x = np.ogrid[-1:1:side * 1j, -1:1:side * 1j]
    rows, boxes = ['patient_id,image,text,split,a,b'], ['image,label,x,y,w,h']
    for i in range(n):
        file = root / f'{i:06}.{"jpg" if i % 2 else "png"}'
        if i < 64:
            rng = np.random.default_rng(i)
            body = 120 + 60 * np.cos(3 * x + i) * np.sin(2 * y) + rng.normal(0, 4, (side, side))
            Image.fromarray(np.clip(body, 0, 255).astype(np.uint8)).save(file)
        else:
            os.link(root / f'{i % 64:06}{file.suffix}', file)
        size = 'enlarged' if i % 3 else 'normal'
        report = f'FINDINGS: the heart is {size}. {"Lungs are clear. " * 12} IMPRESSION: stable.'
        rows.append(f'p{i},{file.name},{report},train,{i % 2},{"1" if i % 5 else ""}')
        if i % 20 == 0:
            boxes.append(f'{file.name},a,{side // 100},{side // 50},{3 * side // 10},{side // 5}')
    (root / 'boxes.csv').write_text('\n'.join(boxes))
    (root / 'cases.csv').write_text('\n'.join(rows))


def data_config(root, args, threads, transforms, augment=(), **more):
    from ml_collections import ConfigDict

    from jaxkd import config
    return config.resolve(ConfigDict(dict(data={**dict(
        source=dict(name='folder', root=str(root)), transforms=transforms, augment=augment,
        image=dict(size=args.size, fit='squash'),
        text=dict(length=96, vocab=256), split=dict(fractions=(1.0, 0.0, 0.0)), cache='none', threads=threads),
        **more}))).data


def torch_rows(args, folder):
    """The same work by PyTorch: this runs in a Python that need not have jaxkd."""
    import numpy as np
    import torch
    torch.set_num_threads(1)
    root, out = folder / f'files_{args.n}_{args.side}', folder / f'store_{args.n}_{args.side}_{args.size}'
    arrays = [np.load(out / f'{name}.npy', mmap_mode='r') for name in ('image', 'label', 'label_weight')]
    names = [file for file in sorted(root.iterdir()) if file.suffix in ('.png', '.jpg')][:args.some]

    class Prepared(torch.utils.data.Dataset):
        def __len__(self):
            return args.n

        def __getitem__(self, i):
            image, label, weight = (torch.from_numpy(np.array(a[i])) for a in arrays)
            return dict(image=image.float().div(255), label=label, label_weight=weight)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(names)

        def __getitem__(self, i):
            return torch.from_numpy(pillow(names[i], args.size))
    print(f'PyTorch {torch.__version__}, 1 thread on 1 core')
    for what, dataset in (('DataLoader, prepared bytes', Prepared()), ('DataLoader, files', Files())):
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=0)
        timed(what, lambda loader=loader: sum(len(batch['image'] if isinstance(batch, dict) else batch)
                                              for batch in loader), args)


if __name__ == '__main__':
    main()
