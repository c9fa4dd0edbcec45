"""Names of the leaves of a tree of arrays."""
import jax


def leaf_name(path: tuple) -> str:
    """'student/block00/qkv/kernel' of a key path."""
    return jax.tree_util.keystr(path, simple=True, separator='/')
