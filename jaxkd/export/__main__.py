"""Write a trained student as a bundle: a folder with all that predictions need, for users without the training code.

    python -m jaxkd.export --run runs/a --out BUNDLE [--stage student] [--which best]
    python -m jaxkd.export verify BUNDLE

The bundle holds the network as StableHLO and ONNX and as weights by our names and those of timm, Hugging Face or
torchvision, the preprocessing, calibration and operating points as JSON, a model card, an artificial case with its
output, checksums of it all, and run.py, which predicts without jaxkd and JAX. docs/how_to/export.md

`verify` compares the checksums, computes the artificial case with each program, and names a file that is not what was
exported.
"""
import argparse
import os
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave, parse


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd.export', description=__doc__, allow_abbrev=False, epilog=EXIT_CODES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('verify', nargs='*', metavar='verify BUNDLE', help='a bundle that is to be checked')
    parser.add_argument('--run', metavar='WORKDIR', help='of a run')
    parser.add_argument('--stage', default='', help='of the run (default: the student that it was made for)')
    parser.add_argument('--which', default='best', help='best, last or a step')
    parser.add_argument('--out', metavar='BUNDLE', help='a folder, new or an earlier bundle')
    parser.add_argument('--name', default='', help='of the network, for metadata.json')
    parser.add_argument('--version', default='1.0.0', help='of the bundle')
    parser.add_argument('--data_licence', default='', help='of the training data, for metadata.json and the card')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, *parse(build_parser(), argv))


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    from jaxkd import errors, parallel
    if overrides:
        raise errors.ConfigError(f'--config.{overrides[0]}: a trained stage keeps its config. Leave it out.')
    if args.verify and (args.verify[0] != 'verify' or len(args.verify) != 2 or args.run or args.out):
        raise errors.ConfigError('Write: python -m jaxkd.export verify BUNDLE, or python -m jaxkd.export --run WORKDIR '
                                 '--out BUNDLE')
    if not args.verify and not (args.run and args.out):
        raise errors.ConfigError('--run WORKDIR and --out BUNDLE are needed, or: verify BUNDLE')
    parallel.check_devices()
    parallel.enable_compilation_cache()
    return _verify(args.verify[1]) if args.verify else _export(args)


def _verify(folder: str) -> int:
    from jaxkd.export import bundle
    from jaxkd.runtime import log
    names = bundle.verify(folder)
    differences = bundle.check_golden(folder, names)
    shown = ', '.join(f'{name} differs from the golden output by {d:.2g}' for name, d in differences.items())
    log.info(f'{folder}: {len(names)} files are what was exported; {shown}')
    return 0


def _export(args: argparse.Namespace) -> int:
    from jaxkd.export import bundle, contents
    from jaxkd.runtime import log
    options = contents.Options(args.name, args.version, args.data_licence)
    files, notes = contents.of_stage(args.run, args.stage, args.which, options)
    bundle.write(args.out, files)
    bundle.check_golden(args.out, bundle.verify(args.out))
    for note in notes:
        log.info(f'not in the bundle: {note}')
    log.info(f'{args.out}: {len(files)} files, {sum(map(len, files.values())) / 2**20:.1f} MiB: {", ".join(files)}')
    return 0


if __name__ == '__main__':
    leave(main())
