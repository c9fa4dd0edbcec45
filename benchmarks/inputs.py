"""A worker that makes the data of a run ready, or reads its images, with the jaxkd of PYTHONPATH.

    start_up   a config is read and its data are built: table, cases, split, transforms with what they learn. Of 400,000
               rows, 4 of a patient, as CheXpert lays them out, and as `folder` with reports has them; names alone, no
               image is opened
    image      a file of 1024 x 1024 pixels read and brought to 224 x 224: PNG of 8 and of 16 bits
    stream     a batch of 32 of the training stream, augmented
A checkout that has the module jaxkd.data.pipeline is asked by its names of then.
"""
import argparse
import contextlib
import csv
import functools
import importlib.util
import os
import pathlib
import sys
import tempfile

from resident import serve  # beside this script

ROWS, SIDE, IMAGES = 400_000, 1024, 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('case', choices=CASES)
    parser.add_argument('--mode')
    parser.add_argument('--smoke', action='store_true')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        numbers = CASES[args.case](pathlib.Path(folder), *((400, 64) if args.smoke else (ROWS, SIDE)))

        def case():  # lines of the log are no answers
            with contextlib.redirect_stdout(sys.stderr):
                return numbers()
        serve(lambda repetitions: [case() for _ in range(repetitions)] and None, numbers=[float(v) for v in case()])


def dataset(hp):
    """The data of a resolved data config."""
    if importlib.util.find_spec('jaxkd.data.pipeline'):
        from jaxkd.data import pipeline
        return pipeline.build(hp)
    from jaxkd.data import pool
    return pool.build(hp)


def start_up(layout, folder, count, side):
    LAYOUTS[layout](folder, count)
    spec = pathlib.Path(os.environ['PYTHONPATH'], 'configs', 'mmpkd_cxr.py')
    from jaxkd import config
    transforms = 'labels' if layout == 'chexpert' else 'text,labels'
    overrides = [f'data.source.root={folder}', 'data.split.fractions=(0.9,0.1,0.0)', f'data.transforms={transforms}',
                 'data.augment=']

    def numbers():
        run = config.load(f'{spec}:{layout}', overrides)
        data = dataset(config.stage_data(run, run.stages[0]))
        return [len(data.source.cases), (data.source.values == 1).sum()]
    return numbers


def chexpert(root, count):
    """train.csv and valid.csv."""
    from jaxkd.data.sources.chexpert import HEADER
    labels = [['', '', '1.0', '', '', '-1.0', '', '0.0', '', '', '1.0', '', '', '1.0'], ['1.0', *[''] * 12, '0.0']]
    for table, first, n in (('train', 1, count), ('valid', 200_001, count // 100)):
        with open(root / f'{table}.csv', 'w', newline='') as f:
            rows = csv.writer(f)
            rows.writerow(HEADER)
            rows.writerows([f'CheXpert-v1.0-small/{table}/patient{first + i // 4:05}/study{1 + i % 4 // 2}/'
                            f'view{1 + i % 2}_frontal.jpg', 'Female' if i % 8 < 4 else 'Male', 18 + i // 4 % 70,
                            'Frontal', 'AP' if i % 3 else 'PA', *labels[i % 2]] for i in range(n))


def own(root, count):
    """cases.csv with reports and 14 labels."""
    values = ['1', '0', '-1', '', '', '', '0.0', '1.0']
    with open(root / 'cases.csv', 'w', newline='') as f:
        rows = csv.writer(f)
        rows.writerow(['patient_id', 'image', 'text', 'study_id', *(f'finding{c}' for c in range(14))])
        rows.writerows([f'p{i // 4}', f'files/p{i // 4:06}/{i}.jpg',
                        f'FINDINGS: The heart is {"not " * (i // 2 % 2)}enlarged. ' * 5, f's{i // 2}',
                        *(values[(i + c) % 8] for c in range(14))] for i in range(count))


LAYOUTS = {'chexpert': chexpert, 'folder': own}


def image_data(folder, bits, side, augment=()):
    """The data of a folder with smooth bodies and noise as PNG."""
    import numpy as np
    from ml_collections import ConfigDict
    from PIL import Image

    from jaxkd import config
    y, x = np.ogrid[-1:1:side * 1j, -1:1:side * 1j]
    for k in range(IMAGES):
        body = 0.5 + 0.25 * np.cos(3 * x + k) * np.sin(2 * y) + np.random.default_rng(k).normal(0, 0.02, (side, side))
        pixels = (np.clip(body, 0, 1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)
        Image.fromarray(pixels).save(folder / f'{k}.png')
    rows = [f'p{k},{k}.png,train,{k % 2}' for k in range(IMAGES)]
    (folder / 'cases.csv').write_text('\n'.join(['patient_id,image,split,a', *rows]))
    return dataset(config.resolve(ConfigDict(dict(data=dict(
        source=dict(name='folder', root=str(folder), empty_text='ok'), transforms=('image', 'labels'), augment=augment,
        image=dict(size=224, fit='squash'), split=dict(fractions=(1.0, 0.0, 0.0)), cache='none', threads=1)))).data)


def image(bits, folder, count, side):
    data = image_data(folder, bits, side)
    read = data.case if hasattr(data, 'case') else data.__getitem__
    return lambda: [read(i)['image'].mean() for i in range(IMAGES)]


def stream(folder, count, side):
    data = image_data(folder, 8, side, ('affine', 'contrast'))
    if hasattr(data, 'train'):
        batches = data.train(32, seed=0)
    else:
        from jaxkd.data import loader
        batches = loader.train_loader(data, 32, seed=0)
    return lambda: [next(batches)['image'].size]


CASES = {
    'start_up_chexpert': functools.partial(start_up, 'chexpert'),
    'start_up_folder': functools.partial(start_up, 'folder'),
    'image_png8': functools.partial(image, 8),
    'image_png16': functools.partial(image, 16),
    'image_stream': stream}


if __name__ == '__main__':
    main()
