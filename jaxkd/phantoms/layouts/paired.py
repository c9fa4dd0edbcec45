"""A folder of volumes: paired CT, T1 and T2 of the pancreas phantom as NIfTI with regions, as the source `paired` reads
them.

    cases.csv, prior.csv, <case_id>/{ct,t1,t2}.nii.gz (int16), <case_id>/roi_{ct,t1,t2}.nii.gz (uint8, 1 in the lesion)

prior.csv holds P(class | texture, duct).
"""
import os

from jaxkd.data import volume
from jaxkd.phantoms import common
from jaxkd.phantoms.pancreas import renderer
from jaxkd.runtime import files

COLUMNS = 'case_id,patient_id,center,cls,texture,duct,split,subgroup,size'


def write(folder: str | os.PathLike, patients: int, seed: int = 0, size: int = 48, depth: int = 16,
          field: tuple[float, float, float] = (96.0, 96.0, 72.0), difficulty: float = 0.5, missing_mri: float = 0.05,
          missing_t2: float = 0.05, unknown: float = 0.02) -> None:
    """Write the volumes of the patients, the very voxels of `render`, and the tables; the split is left to be drawn.

    size: voxels of the CT in plane, 32..256. depth: slices of the CT, 8..96. field: mm x, y, z around the lesion that
    every grid covers. difficulty: 0 plain .. 1 little contrast and much noise in CT. missing_mri: fraction of patients
    without T1 and T2. missing_t2: fraction of the remaining patients without T2. unknown: fraction of patients with
    unknown texture (-1), and of those with unknown duct. Raises ConfigError, CannotWrite.
    """
    renderer.check(patients, size, depth, field, difficulty, missing_mri, missing_t2, unknown, seed)
    rows = [COLUMNS]
    for patient in range(patients):
        truth, name = renderer.facts(seed, patient), f'p{patient:06d}'
        missing, hidden = renderer.absent(seed, patient, missing_mri, missing_t2, unknown)
        texture, duct = (-1 if task in hidden else getattr(truth, task) for task in renderer.TASKS)
        rows.append(f'{name},{name},{truth.centre},{renderer.LABELS[truth.label]},{texture},{duct},,'
                    f'{truth.groups["subgroup"]},{truth.groups["size"]}')
        volumes, masks, _ = renderer.render(seed, patient, size, depth, field, difficulty,
                                            common.available(renderer.MODALITIES, missing))
        for file, v in [*volumes.items(), *((f'roi_{m}', v) for m, v in masks.items())]:
            volume.save(os.path.join(folder, name, f'{file}.nii.gz'), v.voxels, v)
    files.write(os.path.join(folder, 'cases.csv'), '\n'.join(rows) + '\n')
    prior = [f'{t},{d},' + ','.join(f'{p:g}' for p in renderer.PRIOR[t, d]) for t in range(3) for d in range(3)]
    prior.insert(0, 'texture,duct,p_class0,p_class1,p_class2')
    files.write(os.path.join(folder, 'prior.csv'), '\n'.join(prior) + '\n')
