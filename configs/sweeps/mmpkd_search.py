"""Learning rate and weight of the teacher's term of the student, by its validation AUROC. The teacher trains once.

    python -m launch.sweep configs/sweeps/mmpkd_search.py
"""
from launch.search import Search, log_uniform, uniform


def get_search() -> Search:
    return Search('configs/mmpkd_cxr.py:full_labels', stage='student', trials=24,
                  overrides={'stages': ('teacher', 'student')},
                  space={'student.optim.lr': log_uniform(1e-4, 1e-2), 'student.method.alpha': uniform(0.0, 1.0)})
