"""How much of the teacher: the weight of its term, with three seeds. The teacher and image_only of a seed are shared.

    python -m launch.sweep configs/sweeps/mmpkd_alpha.py
"""
from launch.members import Member, product, seeds


def get_sweep() -> list[Member]:
    return seeds(product('configs/mmpkd_cxr.py:full_labels', {'student.method.alpha': (0.25, 0.5, 0.75)}), (0, 1, 2))
