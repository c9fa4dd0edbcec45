"""Versions of what a number depends on beside the config."""
import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """What a number depends on beside the config."""
    names = ('jaxkd', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
    found = {'python': platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'not installed'
    return found
