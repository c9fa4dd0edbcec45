"""Versions of Python and the packages that results depend on."""
import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """{package: version} for summary.json."""
    names = ('jaxkd', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    versions = {'python': platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'not installed'
    return versions
