"""Names that stand for case and patient ids in what leaves a site: keyed hashes, and the salt that is their key.

The same id has the same pseudonym under the same salt, so tables of several commands can be joined. Who has the salt
can find out whether an id that is guessed belongs to a pseudonym, so it stays where the patients are: in a file of its
own that only its owner may read (mode 600), never in a folder of outputs.
"""
import hashlib
import os
import pathlib
import secrets
from collections.abc import Sequence

from jaxkd import errors

SALT = 32  # bytes
DIGITS = 16  # hexadecimal, of a pseudonym: 64 bits, so among a million ids two agree once in 37 million times
KINDS = ('case', 'patient', 'study')


class Pseudonyms:
    """pseudonyms(id, kind) -> 'case-0123456789abcdef'; kinds have nothing to do with each other."""

    def __init__(self, salt: bytes) -> None:
        self._salt = salt

    def __call__(self, identifier: str, kind: str = 'case') -> str:
        """'' stays ''."""
        if not identifier:
            return ''
        digest = hashlib.blake2b(str(identifier).encode(), key=self._salt, digest_size=DIGITS // 2,
                                 person=kind.encode()[:16])
        return f'{kind}-{digest.hexdigest()}'


def default_salt_file() -> pathlib.Path:
    """The file of the user's salt: ~/.config/jaxkd/deidentify.salt, or below XDG_CONFIG_HOME."""
    home = os.environ.get('XDG_CONFIG_HOME') or pathlib.Path.home() / '.config'
    return pathlib.Path(home, 'jaxkd', 'deidentify.salt')


def pseudonyms(salt_file: str | os.PathLike = '', outputs: Sequence[str | os.PathLike] = ()) -> Pseudonyms:
    """Those of the salt in a file, '' for the user's own; a file that does not exist is made, with mode 600.

    outputs: the folders and files that are handed on. ConfigError for a salt within one of them, Damaged for a file
    that holds no salt, BadData for one that others may read, CannotWrite.
    """
    path = pathlib.Path(salt_file or default_salt_file()).expanduser()
    for output in map(pathlib.Path, outputs):
        if path.resolve().is_relative_to(output.resolve()):
            raise errors.ConfigError(f'The salt {path} lies in {output}, which is handed on: with it, ids can be '
                                     'guessed from their pseudonyms. Name a file elsewhere (--salt).')
    try:
        _make(path)
        salt = path.read_bytes()
        open_to_others = os.name == 'posix' and path.stat().st_mode & 0o077
    except OSError as e:
        raise errors.CannotWrite(f'The salt {path} can neither be made nor read ({e.strerror}). Name another file '
                                 '(--salt).') from e
    if open_to_others:
        raise errors.BadData(f'The salt {path} may be read by others. Take their rights away: chmod 600 {path}')
    try:
        key = bytes.fromhex(salt.decode().strip())
    except ValueError:
        key = b''
    if len(key) != SALT:
        raise errors.Damaged(f'{path} holds no salt ({2 * SALT} hexadecimal digits). Restore it; under another salt '
                             'the same ids get other pseudonyms.')
    return Pseudonyms(key)


def _make(path):
    """Write a new salt, unless there is one: of two processes the first wins, and the file is whole when it has its
    name.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}')
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), 'w') as f:
        f.write(secrets.token_hex(SALT) + '\n')
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
