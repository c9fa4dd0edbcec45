"""What a prediction has finished: a line for each case in cases.jsonl, written when its files are, so that the same
command goes on after a kill.
"""
import csv
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxkd import errors
from jaxkd.runtime import files

SETTINGS, LINES, TABLE, ERRORS = 'predict.json', 'cases.jsonl', 'predictions.csv', 'errors.csv'


class Journal:
    """The finished cases of an output folder, and the tables made of them."""

    def __init__(self, out: pathlib.Path, settings: Mapping[str, Any], restart: bool) -> None:
        """ConfigError where the folder holds predictions by other `settings`, unless `restart`, which forgets them."""
        self.out = out
        path = out / SETTINGS
        if restart:
            for name in (LINES, TABLE, ERRORS):
                (out / name).unlink(missing_ok=True)
        elif path.exists():
            before = files.read_json(path, 'The options of the predictions')
            if changed := [key for key in {**settings, **before} if before.get(key) != settings.get(key)]:
                raise errors.ConfigError(f'{out} holds predictions by other options ({", ".join(changed)}). Choose '
                                         'another --output, or forget them with --restart.')
        files.write_json(path, dict(settings))
        self.finished = {entry['case']: entry for entry in _read(out / LINES)}
        with files.writing(out / LINES):
            self._file = open(out / LINES, 'a', encoding='utf-8')

    def add(self, case: str, fingerprint: str, row: Mapping[str, str]) -> None:
        """A finished case, on disk when this returns."""
        entry = dict(case=case, fingerprint=fingerprint, row=dict(row))
        with files.writing(self.out / LINES):
            self._file.write(json.dumps(entry, ensure_ascii=False) + '\n')
            self._file.flush()
            os.fsync(self._file.fileno())
        self.finished[case] = entry

    def close(self, cases: Sequence[str], failed: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
        """Write predictions.csv in the order of `cases`, and errors.csv (case, message) or none -> the rows."""
        self._file.close()
        rows = [{'case': case, **self.finished[case]['row']} for case in cases if case in self.finished]
        columns = list(dict.fromkeys(column for row in rows for column in row)) or ['case']
        files.write(self.out / TABLE, _csv(columns, [[row.get(c, '') for c in columns] for row in rows]))
        if failed:
            files.write(self.out / ERRORS, _csv(['case', 'error'], failed))
        else:
            (self.out / ERRORS).unlink(missing_ok=True)
        return rows


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of the file; the last one may have been cut short, and is cut off."""
    if not path.exists():
        return []
    with files.writing(path):
        data = path.read_bytes()
        whole = data[:data.rfind(b'\n') + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
    try:
        entries = [json.loads(line) for line in whole.decode().splitlines()]
        return [dict(case=e['case'], fingerprint=e['fingerprint'], row=e['row']) for e in entries]
    except (ValueError, TypeError, KeyError) as e:
        raise errors.Damaged(f'{path} cannot be read ({e}). Predict again with --restart.') from e


def _csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    out = io.StringIO(newline='')
    writer = csv.writer(out, lineterminator='\n')
    writer.writerows([columns, *rows])
    return out.getvalue()
