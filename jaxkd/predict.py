"""Predict new cases with a trained network: probabilities and decisions as a table, masks on the grids of the files.

    python -m jaxkd.predict --run runs/a --input FOLDER --output OUT
    python -m jaxkd.predict --run runs/a --stage cpmn --input scan.nii.gz --output OUT
    python -m jaxkd.predict --run runs/a --input cases.csv --output OUT          a column for each input of the network
    python -m jaxkd.predict --run runs/a --input ct=CT --input pet=PET --output OUT       a file or a folder for each
    python -m jaxkd.predict --run runs/a --run runs/b --input FOLDER --output OUT         mean and spread of several
    python -m jaxkd.predict --model BUNDLE --input FOLDER --output OUT            of jaxkd.export, docs/how_to/export.md

Needs the folder of a run, or that of one stage's checkpoints, and the inputs of its network: no data set, no teacher.
Files are read and transformed as in the test of the run, so its own test cases get the same numbers. --run takes the
folder of a multirun, too, for all of its members. Without --stage the student is taken that the run was made for.

In:  PNG, JPEG, BMP, TIFF or DICOM pictures; .nii, .nii.gz, .nrrd or folders with a DICOM series for volumes; .nii or
     .nii.gz, slice by slice, for segmentation of slices; .txt or a column of a table for reports; tables of findings.
Out: OUT/predictions.csv (probabilities, calibrated ones, decisions; docs/how_to/predict.md), masks/ (PNG, .nii.gz,
     .nrrd, DICOM SEG), overlays/, index.html to look through the cases, errors.csv of files that could not be used.

A killed command goes on where it was when it is repeated. It ends with 65 where some files could not be used; all
others are predicted.
"""
import argparse
import os
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave, parse

if TYPE_CHECKING:
    from jaxkd.inference.case_files import CaseFiles
    from jaxkd.inference.deployed import Deployed
    from jaxkd.inference.journal import Journal
    from jaxkd.runtime.deidentify import Pseudonyms

SHOWN = 10  # errors in the log
HIDDEN = 'could not be used; the log of the command says why'
NOTE = 'Predictions of a network for research. They are no diagnosis.'


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd.predict', description=__doc__, allow_abbrev=False, epilog=EXIT_CODES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--run', action='append', default=[], metavar='WORKDIR', help='of a run; of several: mean')
    parser.add_argument('--model', action='append', default=[], metavar='BUNDLE',
                        help='a bundle of jaxkd.export in the place of a run')
    parser.add_argument('--stage', default='', help='of the run (default: the student that it was made for)')
    parser.add_argument('--input', action='extend', nargs='+', required=True, metavar='PATH',
                        help='files, a folder, cases.csv, or KEY=PATH')
    parser.add_argument('--output', required=True, metavar='OUT', help='a folder')
    parser.add_argument('--which', default='best', help='best, last or a step')
    parser.add_argument('--batch', type=int, default=0, help='cases or windows at a time (default: as in the run)')
    parser.add_argument('--threads', type=int, default=2, help='that read files')
    parser.add_argument('--overlap', type=float, help='of windows, a share of their side (default: as in the run)')
    parser.add_argument('--mirror', action='store_true', help='average over windows mirrored along every axis')
    parser.add_argument('--masks', choices=('same', 'nifti'), default='same',
                        help='of DICOM series: DICOM SEG, or .nii.gz')
    parser.add_argument('--probabilities', action='store_true', help='maps of the probability of any foreground, too')
    parser.add_argument('--overlays', action='store_true', help='pictures of masks, attention or class activation')
    parser.add_argument('--deidentify', action='store_true',
                        help='pseudonyms in place of the names of cases; masks of DICOM are .nii.gz')
    parser.add_argument('--salt', metavar='FILE', default='', help='what the pseudonyms are made with (default: '
                        '~/.config/jaxkd/deidentify.salt)')
    parser.add_argument('--restart', action='store_true', help='forget what OUT holds of an earlier command')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    return guarded(_run, *parse(build_parser(), argv))


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    import dataclasses

    from jaxkd import errors, parallel
    from jaxkd.inference import case_files, masks
    from jaxkd.inference.journal import Journal
    from jaxkd.report import prediction_page
    from jaxkd.runtime import deidentify, lock, log, preemption
    if overrides:
        raise errors.ConfigError(f'--config.{overrides[0]}: a trained stage keeps its config. Leave it out.')
    errors.check_range('--batch', args.batch, '[0, inf)')
    errors.check_range('--threads', args.threads, '[1, inf)')
    parallel.check_devices()
    parallel.enable_compilation_cache()
    begin, members = time.perf_counter(), _members(args)
    cases, out = case_files.find(members[0].files, args.input), pathlib.Path(args.output)
    if names := deidentify.pseudonyms(args.salt, [out]) if args.deidentify else None:
        cases = [dataclasses.replace(case, name=names(case.name)) for case in cases]
        args.masks = 'nifti'  # a DICOM SEG repeats the identifiers of its series
    masks.check_names([case.name for case in cases])
    masks.check_output(args.output, [*args.input, *(p for case in cases for p in case.paths(members[0].files))])
    with lock.hold(out), preemption.catch_signals():
        journal = Journal(out, _settings(args, members), args.restart)
        failed = _predict(args, members, cases, out, journal, names)
        written = [(case, HIDDEN if names else error) for case, error in failed]
        rows = journal.close([case.name for case in cases], written)
    prediction_page.write(out, rows, written, f'Predictions of {members[0].name}', NOTE)
    log.info(f'{out / "predictions.csv"}: {len(rows)} of {len(cases)} cases, {time.perf_counter() - begin:.1f} s')
    return _report(failed, out)


def _members(args: argparse.Namespace) -> list['Deployed']:
    """The networks that are asked for. ConfigError for those that cannot be averaged."""
    import dataclasses

    from jaxkd import errors
    from jaxkd.inference import deployed, run_cases
    from jaxkd.runtime import log
    if not args.run and not args.model:
        raise errors.ConfigError('--run WORKDIR or --model BUNDLE is missing: what predicts?')
    folders = [folder for run in args.run for folder in deployed.training_runs(run)]
    members = [deployed.load(folder, args.stage, args.which) for folder in folders]
    if args.model:
        from jaxkd.export import bundle
        members += [bundle.load(folder) for folder in args.model]
    run_cases.check_members(members)
    changes: dict[str, Any] = {}
    if args.overlap is not None:
        errors.check_range('--overlap', args.overlap, '[0, 1)')
        changes['overlap'] = args.overlap
    if args.mirror:
        changes['mirror'] = (0, 1, 2)
    for member in members:
        log.info(f'{member.name}: reads {", ".join(member.files.kinds)}' + (
            '' if member.decision else '; no calibration and no decisions, which the evaluators classification, '
            'multiclass and segmentation fit on a validation part (python -m jaxkd.evaluate adds them to runs of '
            'earlier versions)'))
    return [dataclasses.replace(m, windows=dataclasses.replace(m.windows, **changes)) for m in members]


def _settings(args: argparse.Namespace, members: Sequence['Deployed']) -> dict[str, Any]:
    """What predictions depend on, and a resumed command must have in common."""
    chosen = {key: getattr(args, key) for key in ('batch', 'overlap', 'mirror', 'masks', 'probabilities', 'overlays')}
    return dict(networks=[member.digest for member in members], **chosen) | ({'deidentify': True} if args.deidentify
                                                                             else {})


def _predict(args: argparse.Namespace, members: Sequence['Deployed'], cases: Sequence['CaseFiles'], out: pathlib.Path,
             journal: 'Journal', names: 'Pseudonyms | None') -> list[tuple[str, str]]:
    """Predict what is not finished -> [(case, error)]."""
    from jaxkd.inference import masks, run_cases
    from jaxkd.runtime import log
    inputs = members[0].files
    prints = {case.name: case.fingerprint(inputs) for case in cases}
    if names:  # the names of files are in them
        prints = {case: names(fingerprint, 'files') for case, fingerprint in prints.items()}
    left = [case for case in cases if journal.finished.get(case.name, {}).get('fingerprint') != prints[case.name]]
    if len(left) < len(cases):
        log.info(f'{out}: {len(cases) - len(left)} of {len(cases)} cases were predicted before')
    failed: dict[str, str] = {}
    writer = masks.MaskWriter(out, members[0].labels, args.masks, pathlib.Path((*args.run, *args.model)[0]).name)
    options = run_cases.Options(args.batch, args.threads, args.probabilities, args.overlays)
    for case in left:
        journal.finished.pop(case.name, None)
    if left:
        run_cases.predict(members, left, len(cases), writer, options,
                          lambda case, row: journal.add(case.name, prints[case.name], row),
                          lambda case, error: failed.update({case.name: str(error)}))
    return [(case.name, failed[case.name]) for case in cases if case.name in failed]


def _report(failed: Sequence[tuple[str, str]], out: pathlib.Path) -> int:
    """Log the errors -> the exit code."""
    from jaxkd import errors
    from jaxkd.runtime import log
    for case, error in failed[:SHOWN]:
        log.info(f'not predicted: {case}: {error}')
    if len(failed) > SHOWN:
        log.info(f'... and {len(failed) - SHOWN} more, in {out / "errors.csv"}')
    return errors.BadData.code if failed else 0


if __name__ == '__main__':
    leave(main())
