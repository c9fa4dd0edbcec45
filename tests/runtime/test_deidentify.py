"""Pseudonyms depend on the id, its kind and the salt alone, and the salt stays with its owner."""
import concurrent.futures
import stat

import pytest

from jaxkd import errors
from jaxkd.runtime import deidentify


def test_worked_values():
    names = deidentify.Pseudonyms(bytes(range(32)))
    assert names('MRN 12') == names('MRN 12', 'case') == 'case-' + names('MRN 12')[5:] and len(names('MRN 12')) == 21
    patient = names('MRN 12', 'patient').replace('patient', 'case')
    assert len({names('MRN 12'), names('MRN 13'), names('mrn 12'), patient, deidentify.Pseudonyms(bytes(32))('MRN 12')}
               ) == 5
    assert names('') == '' and names('M\u00fcller^J').startswith('case-')


def test_a_salt_is_made_once_and_is_readable_by_its_owner_alone(tmp_path):
    path = tmp_path / 'deep' / 'salt'
    first = deidentify.pseudonyms(path, [tmp_path / 'out'])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [*path.parent.iterdir()] == [path]
    assert deidentify.pseudonyms(path)('a') == first('a')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = {f.result()('a') for f in [pool.submit(deidentify.pseudonyms, tmp_path / 'other') for _ in range(16)]}
    assert len(names) == 1 and names != {first('a')}


def test_the_user_has_a_salt_of_his_own(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))
    deidentify.pseudonyms()
    assert deidentify.default_salt_file() == tmp_path / 'jaxkd' / 'deidentify.salt'
    assert deidentify.default_salt_file().exists()


def test_what_is_refused(tmp_path):
    with pytest.raises(errors.ConfigError, match='handed on'):
        deidentify.pseudonyms(tmp_path / 'out' / 'salt', [tmp_path / 'out'])
    assert not (tmp_path / 'out').exists()
    (tmp_path / 'short').write_text('ab\n')
    (tmp_path / 'short').chmod(0o600)
    with pytest.raises(errors.Damaged, match='holds no salt'):
        deidentify.pseudonyms(tmp_path / 'short')
    deidentify.pseudonyms(tmp_path / 'salt')
    (tmp_path / 'salt').chmod(0o640)
    with pytest.raises(errors.BadData, match='chmod 600'):
        deidentify.pseudonyms(tmp_path / 'salt')
    with pytest.raises(errors.CannotWrite, match='neither be made nor read'):
        deidentify.pseudonyms(tmp_path / 'salt' / 'below a file')
