"""summary.json: a damaged one is told from an intact one, wherever it is read."""
import json

import pytest

from jaxkd import errors, runner
from jaxkd.inference import deployed
from jaxkd.multirun import plan
from jaxkd.report import run_folder
from jaxkd.runtime import files

SUMMARY = dict(seed=3, stages=dict(student=dict(finished=True, best=dict(step=120, score=0.8125), names=('a', 'b'))))
READERS = dict(report=run_folder.read, predict=deployed.stage_entries, multirun=plan.finished_in,
               training=runner.read_summary)


def test_it_is_read_as_it_was_written(tmp_path):
    files.write_summary(tmp_path / 'summary.json', SUMMARY | {'counts': {10: 1, 9: 2}})
    expected = json.loads(json.dumps(SUMMARY)) | {'counts': {'10': 1, '9': 2}}
    assert files.read_summary(tmp_path / 'summary.json') == expected
    files.write_json(tmp_path / 'summary.json', SUMMARY)  # of an older version
    assert files.read_summary(tmp_path / 'summary.json') == json.loads(json.dumps(SUMMARY))


def test_no_flipped_bit_changes_what_is_read(tmp_path):
    path = tmp_path / 'summary.json'
    files.write_summary(path, SUMMARY)
    content, refused = path.read_bytes(), 0
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            found = files.read_summary(path)
        except errors.Damaged:
            refused += 1
        else:  # white space, or the name of the digest itself
            assert {key: found.get(key) for key in SUMMARY} == json.loads(json.dumps(SUMMARY)), at
    assert refused > 0.7 * len(content)


@pytest.mark.parametrize('reader', READERS)
def test_a_changed_number_is_refused_by_every_reader(reader, tmp_path):
    files.write_summary(tmp_path / 'summary.json', SUMMARY)
    text = (tmp_path / 'summary.json').read_text()
    (tmp_path / 'summary.json').write_text(text.replace('0.8125', '0.9125'))
    with pytest.raises(errors.Damaged, match='summary.json is not what jaxkd wrote: its digest differs'):
        READERS[reader](tmp_path)
