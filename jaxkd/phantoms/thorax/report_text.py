"""Reports for the thorax phantom: a grammar that states, hedges, omits or denies each finding and words it.

The sections, negations, hedges and asides are those of everyday chest reports; all phrases are [our choice].
`labeller.labels` is the inverse.
"""
import re
from collections.abc import Sequence

import numpy as np

from jaxkd.phantoms.thorax.course import Finding
from jaxkd.phantoms.thorax.labeller import LABELS

_ASSERT = {
    'Atelectasis': ('There is {mild} {side} basilar atelectasis.', '{Side} lower lobe atelectasis is {seen}.',
                    'Linear density at the {side} base is compatible with {mild} atelectasis.',
                    '{Mild} atelectatic changes are {seen} at the {side} lung base.',
                    'Low lung volumes with {side} basilar subsegmental atelectasis.'),
    'Cardiomegaly': ('There is {mild} cardiomegaly.', 'The heart is {mildly} enlarged.',
                     'The cardiac silhouette is {mildly} enlarged.', '{Mild} cardiac enlargement is {seen}.',
                     'Heart size is {mildly} enlarged.'),
    'Consolidation': ('There is a {side} {zone} consolidation.', '{Side} {zone} consolidation with air bronchograms.',
                      'Focal consolidation is {seen} in the {side} {zone}.',
                      'Dense consolidation in the {side} {zone}.'),
    'Edema': ('There is {mild} pulmonary edema.', '{Mild} interstitial edema is {seen}.',
              'Perihilar haziness and indistinct vessels are consistent with {mild} pulmonary edema.',
              '{Mild} pulmonary vascular congestion.', 'Findings of {mild} congestive heart failure.'),
    'Lung Opacity': ('There is a {faint} opacity in the {side} {zone}.', 'A {faint} {side} {zone} opacity is {seen}.',
                     '{Faint} opacification of the {side} {zone} is nonspecific.',
                     'Ill-defined opacity in the {side} {zone}.'),
    'Pleural Effusion': ('There is a {small} {side} pleural effusion.', '{Small} {side} effusion is {seen}.',
                         'A {small} amount of pleural fluid blunts the {side} costophrenic angle.',
                         '{Small} {side} pleural effusion with adjacent blunting of the costophrenic angle.'),
    'Pneumonia': ('Patchy opacities in the {side} {zone} are consistent with pneumonia.',
                  'There is a {side} {zone} airspace opacity, compatible with pneumonia.',
                  '{Side} {zone} infiltrate in keeping with pneumonia.',
                  'Patchy {side} {zone} opacity is most consistent with an infectious process.'),
    'Pneumothorax': ('There is a {small} {side} pneumothorax.', '{Small} {side} apical pneumothorax is {seen}.',
                     'A pleural line is {seen} on the {side}, indicating a {small} pneumothorax.',
                     '{Small} pneumothorax on the {side}.'),
}
_HEDGE = {
    'Atelectasis': ('Possible {side} basilar atelectasis.',
                    'Linear density at the {side} base may represent atelectasis.',
                    'Atelectasis at the {side} base is suspected.'),
    'Cardiomegaly': ('Possible cardiomegaly, accentuated by technique.', 'The heart is borderline enlarged.',
                     'Heart size is at the upper limits of normal.'),
    'Consolidation': ('Early consolidation in the {side} {zone} cannot be excluded.',
                      'Possible consolidation in the {side} {zone}.'),
    'Edema': ('Mild pulmonary edema cannot be excluded.', 'Prominent vessels may reflect mild edema.',
              'Question of mild interstitial edema.'),
    'Lung Opacity': ('Questionable opacity in the {side} {zone}.',
                     'A subtle {side} {zone} opacity cannot be entirely excluded.'),
    'Pleural Effusion': ('A trace {side} pleural effusion is possible.', 'Possible small {side} pleural effusion.',
                         'A small {side} effusion cannot be excluded.'),
    'Pneumonia': ('Patchy opacity in the {side} {zone} may represent pneumonia.',
                  'There is a {side} {zone} opacity, which could represent pneumonia.',
                  'A {side} {zone} infiltrate is present, concerning for pneumonia.'),
    'Pneumothorax': ('A tiny {side} apical pneumothorax cannot be excluded.', 'Possible tiny {side} pneumothorax.',
                     'Apparent lucency at the apex, suspicious for {side} pneumothorax.'),
}
_SHORT = {
    'Atelectasis': ('{side} basilar atelectasis', '{mild} atelectasis at the {side} base'),
    'Cardiomegaly': ('{mild} cardiomegaly', 'cardiomegaly'),
    'Consolidation': ('{side} {zone} consolidation',),
    'Edema': ('{mild} pulmonary edema', '{mild} interstitial edema'),
    'Lung Opacity': ('{side} {zone} opacity', '{faint} opacity in the {side} {zone}'),
    'Pleural Effusion': ('{small} {side} pleural effusion', '{side} pleural effusion'),
    'Pneumonia': ('{side} {zone} pneumonia', 'pneumonia in the {side} {zone}'),
    'Pneumothorax': ('{small} {side} pneumothorax', '{side} pneumothorax'),
}
_NAMES = {'Atelectasis': ('atelectasis',), 'Consolidation': ('focal consolidation', 'consolidation'),
          'Edema': ('pulmonary edema', 'overt edema'), 'Pleural Effusion': ('pleural effusion', 'effusion'),
          'Pneumonia': ('pneumonia', 'evidence of infection'), 'Pneumothorax': ('pneumothorax',)}
_P_NEGATE = {'Atelectasis': 0.04, 'Cardiomegaly': 0.70, 'Consolidation': 0.55, 'Edema': 0.35, 'Lung Opacity': 0.4,
             'Pleural Effusion': 0.75, 'Pneumonia': 0.2, 'Pneumothorax': 0.75}
_NO = ('No {}.', 'There is no {}.', 'There is no evidence of {}.', 'No definite {} is seen.', 'Negative for {}.')
_NORMAL_HEART = ('Heart size is normal.', 'The cardiac silhouette is within normal limits.',
                 'The heart is not enlarged.', 'The cardiomediastinal silhouette is unremarkable.')
_CLEAR = ('The lungs are clear.', 'Lungs are clear bilaterally.', 'No focal airspace opacity.')
_DEVICE = {
    'endotracheal tube': ('The endotracheal tube terminates above the carina.', 'ET tube in standard position.'),
    'central line': ('Right central venous catheter tip projects over the SVC.',
                     'A right internal jugular line is in place.'),
    'pacemaker': ('Left-sided pacemaker with its lead in the right ventricle.',
                  'Left chest wall pacer is in place.'),
    'leads': ('Monitoring leads overlie the chest.',),
    'sternal wires': ('Median sternotomy wires are intact.', 'The patient is status post median sternotomy.')}
_ASIDE = ('Degenerative changes are noted in the thoracic spine.', 'Osseous structures are intact.',
          'The aorta is tortuous.', 'Mild scoliosis of the thoracic spine.', 'No acute osseous abnormality.',
          'The hila are unremarkable.', 'The trachea is midline.', 'The upper abdomen is unremarkable.')
_INDICATION = ('Shortness of breath, evaluate for pneumonia.', 'Cough and fever.', 'Chest pain.',
               'Rule out pneumothorax.', 'Preoperative evaluation.', 'Followup of effusion.', 'Trauma.')
_NORMAL_SUMMARY = ('No acute cardiopulmonary process.', 'No acute cardiopulmonary abnormality.',
                   'Normal chest radiograph.', 'No radiographic evidence of acute disease.')


def write(findings: Sequence[Finding], devices: Sequence[str], number: int,
          rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Word a report of findings (course.Finding) for study `number` of a patient.

    Subtle findings are missed (severity below 0.2: 30 %) or hedged (below 0.35: 30 %) more often than others
    (3 and 8 %). Returns (text, stated) with stated float32 [8], the labels to be read from the text.
    """
    def pick(options):
        return options[int(rng.integers(len(options)))]

    stated = np.full(len(LABELS), np.nan, np.float32)
    body, short, mentioned = [], [], []
    for f in findings:
        u = rng.random(2)
        if u[0] < (0.3 if f.severity < 0.2 else 0.03):
            continue
        hedged = u[1] < (0.3 if f.severity < 0.35 else 0.08)
        body.append(_fill(pick((_HEDGE if hedged else _ASSERT)[f.name]), f, pick))
        if not hedged:
            short.append(_fill(pick(_SHORT[f.name]), f, pick))
        mentioned.append(f.name)
        _set_status(stated, f.name, -1 if hedged else 1)
        if f.name == 'Pneumonia':
            _set_status(stated, 'Lung Opacity', 1)
    absent = [n for n in LABELS if np.isnan(stated[LABELS.index(n)])]
    if rng.random() < 0.05 and 'Pneumonia' in absent:
        body.append('Early pneumonia cannot be excluded.')
        _set_status(stated, 'Pneumonia', -1)
        absent.remove('Pneumonia')
    absent = [n for n in absent if rng.random() < _P_NEGATE[n]]
    parenchyma = {'Atelectasis', 'Consolidation', 'Edema', 'Lung Opacity', 'Pneumonia'} & set(mentioned)
    if parenchyma and 'Lung Opacity' in absent:
        absent.remove('Lung Opacity')
    for name in absent:
        _set_status(stated, name, 0)
    if 'Cardiomegaly' in absent:
        body.append(pick(_NORMAL_HEART))
    if 'Lung Opacity' in absent:
        body.insert(0, pick(_CLEAR))
    denied = [pick(_NAMES[n]) for n in absent if n in _NAMES]
    if denied and rng.random() < 0.7:
        body.append(pick(_NO).format(_join(denied)))
    else:
        body += [pick(_NO).format(n) for n in denied]
    body += [pick(_DEVICE[d]) for d in devices if rng.random() < 0.85]
    body += [s for s in _ASIDE if rng.random() < 0.12]
    body = [body[k] for k in rng.permutation(len(body))] or ['Unremarkable examination.']
    return _assemble(body, short, mentioned, number, rng, pick), stated


def _assemble(body, short, stated, number, rng, pick):
    parts = []
    if rng.random() < 0.3:
        parts.append('EXAMINATION: CHEST RADIOGRAPH, SINGLE FRONTAL VIEW.')
    if rng.random() < 0.6:
        parts.append('INDICATION: ' + pick(_INDICATION))
    if rng.random() < 0.4:
        parts.append('TECHNIQUE: Frontal view of the chest.')
    if number:
        parts.append('COMPARISON: ' + pick(('Prior chest radiograph.', 'Earlier study of this patient.')))
        if rng.random() < 0.5:
            body.insert(0, pick(('Comparison is made with the prior study.',
                                 'Since the prior study, no device has moved.')))
    parts.append('FINDINGS: ' + ' '.join(body))
    if rng.random() < 0.85:
        if short:
            lines = [s[0].upper() + s[1:] + '.' for s in short]
            summary = ' '.join(f'{k}. {s}' for k, s in enumerate(lines, 1)) if len(lines) > 1 else lines[0]
        else:
            summary = 'Findings as above; clinical correlation is advised.' if stated else pick(_NORMAL_SUMMARY)
        parts.append('IMPRESSION: ' + summary)
    return '\n'.join(parts)


def _set_status(stated, name, value):
    """Positive beats uncertain beats negated."""
    rank = {1: 3, -1: 2, 0: 1}
    k = LABELS.index(name)
    if np.isnan(stated[k]) or rank[value] > rank[int(stated[k])]:
        stated[k] = value


def _fill(template, f, pick):
    grade = min(int(f.severity * 3), 2)
    side = 'bilateral' if len(f.sides) == 2 else f.sides[0]
    zones = [f'{f.zone} lung', f'{f.zone} lung zone']
    if (side, f.zone) != ('left', 'mid'):  # only the right lung has a middle lobe
        zones.append({'mid': 'middle lobe'}.get(f.zone, f'{f.zone} lobe'))
    words = dict(side=side, zone=pick(zones), seen=pick(('seen', 'noted', 'present', 'demonstrated')),
                 small=pick((('small', 'tiny'), ('moderate', 'moderate-sized'), ('large', 'sizable'))[grade]),
                 mild=pick((('mild', 'minimal'), ('moderate',), ('severe', 'marked'))[grade]),
                 mildly=('mildly', 'moderately', 'severely')[grade],
                 faint=pick((('faint', 'subtle'), ('hazy', 'vague'), ('focal', 'rounded'))[grade]))
    words.update({k.capitalize(): v.capitalize() for k, v in words.items()})
    text = (_plural(template) if side == 'bilateral' else template).format(**words)
    text = re.sub(r'the bilateral ((?:\w+ )?(?:base|lobe|lung zone|lung|angle))\b', r'both \1s', text)
    return re.sub(r'\b([Aa]) (?=[aeiou])', r'\1n ', text)


def _plural(text):
    """One on each side: 'There is a .. effusion' becomes 'There are .. effusions'."""
    more = re.sub(r'opacity\b', 'opacities', re.sub(r'(effusion|consolidation|infiltrate)\b', r'\1s', text))
    if more != text:
        more = more.replace('There is a ', 'There are ').replace(' is ', ' are ')
        more = re.sub(r'^A (\{?)(\w)', lambda m: m[1] + m[2].upper(), more)
    return more


def _join(words):
    return words[0] if len(words) == 1 else ', '.join(words[:-1]) + ' or ' + words[-1]
