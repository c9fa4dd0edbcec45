"""What this machine and installation can do: versions, devices, memory, disk, extras, and a self-test.

    jaxkd doctor              a few seconds more for the self-test: one train step, its save, its restore
    jaxkd doctor --quick      without it

A missing extra is no fault. Ends with the exit code of what the self-test raised, with 2 where JAX finds no device.
"""
import argparse
import importlib.util
import os
import pathlib
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave

EXTRAS = {  # extra of pyproject.toml: (a module that it installs, what it is for)
    'cuda12': ('jax_cuda12_plugin', 'NVIDIA GPUs with a driver for CUDA 12'),
    'cuda13': ('jax_cuda13_plugin', 'NVIDIA GPUs with a driver for CUDA 13'),
    'tpu': ('libtpu', 'TPUs'),
    'dicom': ('pylibjpeg', 'compressed DICOM'),
    'seg': ('highdicom', 'masks of DICOM series as DICOM SEG, jaxkd predict'),
    'h5': ('h5py', 'slices of ACDC in HDF5'),
    'export': ('onnxruntime', 'bundles of trained students, jaxkd export'),
    'text': ('tokenizers', 'WordPiece tokens of pretrained BERTs'),
    'mlflow': ('mlflow', 'handing runs to MLflow, jaxkd track'),
    'notebooks': ('nbclient', 'the notebooks of colab/, run and tested here'),
    'search': ('optuna', 'a search among the members of a sweep, launch.sweep'),
    'table': ('pyarrow', 'table.parquet of a sweep, launch.collect'),
    'completion': ('shtab', 'completion of the command in a shell, jaxkd --print_completion bash'),
    'docs': ('material', 'building the documentation'),
    'test': ('pytest', 'the tests'),
}
SELF_TEST = ('stages=image_only', 'data.source.patients=12', 'data.source.size=32', 'data.image.size=32',
             'data.augment=', 'image_only.model.width=16', 'image_only.model.depth=1', 'image_only.model.heads=2',
             'image_only.select=',
             'image_only.batch=8', 'image_only.length=1 step', 'image_only.eval_every=1 step',
             'data.split.fractions=0.5,0.25,0.25', 'image_only.optim.warmup=', 'data.transforms=image,labels')


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd doctor', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='no self-test')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, build_parser().parse_args(argv).quick)


def _run(quick: bool) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import parallel
    from jaxkd.runtime import versions
    missing = _missing_device()
    told = {'versions': ', '.join(f'{k} {v}' for k, v in versions.versions().items()),
            'system': f'{platform.platform()}, {versions.cores()} cores, {memory()}',
            'devices': 'none that can be used' if missing else parallel.describe()}
    if not missing:
        told |= {'on a device': parallel.device_memory() or 'memory is not told',
                 'programs': parallel.enable_compilation_cache() or 'not kept: no folder to write to'}
    told |= {f'disk, {name}': disk(folder) for name, folder in (('here', '.'), ('temporary', tempfile.gettempdir()))}
    for name, text in told.items():
        print(f'{name:16} {text}')
    if warning := '' if missing else parallel.unused_accelerator():
        print(warning)
    print(f'\nextras, installed with {versions.install("NAME")}:')
    for name, (module, use) in EXTRAS.items():
        print(f'  {name:10} {"yes" if importlib.util.find_spec(module) else "no ":3}  {use}')
    if missing:
        raise missing
    if not quick:
        print('\nself-test: one train step, its save, its restore ...', flush=True)
        began = time.perf_counter()
        self_test()
        print(f'self-test: passed, {time.perf_counter() - began:.1f} s')
    return 0


def _missing_device() -> Exception | None:
    """The error where JAX cannot use the kind of device that it is asked for."""
    from jaxkd import errors, parallel
    try:
        parallel.check_devices()
    except errors.ConfigError as e:
        return e
    return None


def self_test() -> None:
    """Train a small network for one step in a temporary folder and restore it. JaxkdError where a bit has changed."""
    import jax

    from jaxkd import checkpoint, config, errors, stages, train
    from jaxkd.runtime import saved_student
    run_config = config.load('jaxkd:mmpkd_cxr', SELF_TEST)
    run_config.image_only.evals = {}
    with tempfile.TemporaryDirectory(prefix='jaxkd_doctor_') as folder:
        stage = stages.build(run_config, 'image_only', folder)
        state, _ = train.train(stage, folder, tensorboard=False)
        saver = checkpoint.Checkpointer(stage.folder)
        restored = saver.restore(jax.tree.map(jax.numpy.zeros_like, state))
        saver.close()
        if not restored or saved_student.digest(restored[0]) != saved_student.digest(state):
            raise errors.Damaged(f'What was restored in {folder} is not what was saved. Check the disk and the memory.')


def memory() -> str:
    """Main memory, as the kernel tells it."""
    try:
        lines = dict(line.split(':') for line in pathlib.Path('/proc/meminfo').read_text().splitlines())
        total, free = (int(lines[key].split()[0]) / 2**20 for key in ('MemTotal', 'MemAvailable'))
    except (OSError, KeyError, ValueError):
        return 'memory unknown'
    return f'{free:.1f} of {total:.1f} GiB memory free'


def disk(folder: str) -> str:
    """Free space of the disk that holds a folder."""
    usage = shutil.disk_usage(folder)
    return f'{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free in {os.path.abspath(folder)}'


if __name__ == '__main__':
    leave(main())
