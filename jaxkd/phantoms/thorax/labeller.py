"""A rule-based labeller: the findings that a chest radiograph report states, denies or doubts.

Mentions of the findings in FINDINGS and IMPRESSION are classified as uncertain, negated or positive by
trigger words within their clause, then aggregated over mentions: positive beats uncertain beats negated. This
follows the CheXpert labeller (Irvin et al., AAAI 2019) and NegEx (Chapman et al. 2001) in structure
[published]; the phrase lists are short [our choice]. Values: 1 present, 0 absent, -1
uncertain, nan not mentioned.

TERMS are the words of the findings, for the option mask_terms of jaxkd/data/transforms/text.py and wordpiece.py, for a
teacher that must not read the label by name. Descriptions in other words remain ("blunting of the costophrenic angle"),
and so do qualifiers ("no", "mild", "right lower lobe").
"""
import re

import numpy as np

LABELS = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Lung Opacity', 'Pleural Effusion', 'Pneumonia',
          'Pneumothorax')  # the categories of MS-CXR

_HEART = (r'(?:heart|cardiac|cardiomediastinal|cardio-mediastinal)(?: (?:size|silhouette|shadow|contours?|and'
          r'|mediastinal|mediastinum|pulmonary|vascularity|silhouettes|hilar))*')
_WORDS = {
    'Atelectasis': r'atelecta(?:sis|ses|tic)|lobar collapse|(?:lobe|lung) collapse|collapse of the',
    'Cardiomegaly': (rf'cardiomegaly|cardiac enlargement|enlargement of the (?:heart|cardiac silhouette)'
                     rf'|enlarged (?:heart|cardiac)|{_HEART}(?: (?:is|are|appears?|remains?|again|\w+ly|not'
                     r'|upper|borderline|moderate))* enlarged'),
    'Consolidation': r'consolidat(?:ions?|ive)',
    'Edema': (r'edema|vascular congestion|pulmonary congestion|congestive heart failure|heart failure|kerley'
              r'|vascular engorgement'),
    'Lung Opacity': (r'opacit(?:y|ies)|opacification|airspace disease|air space disease|infiltrat(?:es?|ions?)'
                     r'|lungs are clear|clear lungs|lung fields are clear'),
    'Pleural Effusion': r'(?<!pericardial )effusions?|pleural fluid|hydropneumothorax',
    'Pneumonia': r'(?:broncho)?pneumonia|infectious process|(?<!granulomatous )infection',
    'Pneumothorax': r'(?:hydro)?pneumothora(?:x|ces)',
}
_MENTION = {k: re.compile(rf'\b(?:{v})\b') for k, v in _WORDS.items()}
_NORMAL = re.compile(rf'\b{_HEART}(?: (?:is|are|appears?|remains?|size|within|overall|grossly|and))* '
                     r'(?:normal|unremarkable|stable and normal)')
TERMS = (  # the words of _MENTION and _NORMAL one by one: a text without them states no label
    'atelectasis', 'atelectases', 'atelectatic', 'collapse', 'cardiomegaly', 'heart', 'cardiac', 'cardiomediastinal',
    'cardio mediastinal', 'enlarged', 'enlargement', 'consolidation', 'consolidations', 'consolidative', 'edema',
    'congestion', 'congestive', 'kerley', 'engorgement', 'opacity', 'opacities', 'opacification', 'airspace disease',
    'air space disease', 'infiltrate', 'infiltrates', 'infiltration', 'infiltrations', 'clear', 'effusion',
    'effusions', 'pleural fluid', 'pneumonia', 'bronchopneumonia', 'infection', 'infectious', 'pneumothorax',
    'pneumothoraces', 'hydropneumothorax', 'hydropneumothoraces')
_BORDERLINE = re.compile(rf'\b{_HEART}(?: (?:is|are|appears?|size|at|the|in|remains?))* '
                         r'(?:upper limits? of normal|upper normal|top normal|borderline(?! enlarged)'
                         r'|(?:the )?upper limits)')
_BREAK = re.compile(r'\b(?:but|however|although|though|while|whereas|except|apart from|aside from|other than'
                    r'|with|in the setting of)\b'
                    r'|,(?= (?:and )?(?:there (?:is|are)|a|an|the|new|mild|small|tiny|moderate|large|severe'
                    r'|trace|persistent|unchanged|which)\b(?![^,]*,? or\b))')
_BEFORE = re.compile(
    r'\b(?:may (?:represent|reflect|be|indicate|suggest)|might (?:represent|reflect|be)'
    r'|could (?:represent|reflect|be)|possib(?:le|ly)|questionable|question of|equivocal'
    r'|suspect(?:ed)?|suspicious for|concern(?:ing)? for'
    r'|worrisome for|cannot (?:exclude|rule out)|(?:not|difficult to) (?:exclude|rule out)'
    r'|suggest(?:s|ive|ing)?|borderline|versus|vs)\b')
_AFTER = re.compile(
    r'(?:cannot|can not|could not|can\'t) be (?:\w+ )?(?:excluded|ruled out)|not (?:\w+ )?excluded'
    r'|difficult to exclude|(?:is|are) (?:possible|suspected|questioned|a consideration)'
    r'|\bversus\b|\bvs\b|\bmay be present')
_NOT_BEFORE = re.compile(
    r'\b(?:no(?! (?:significant |interval |appreciable |definite |other |new )*(?:change|increase|decrease))'
    r'|without|not?(?= enlarged)|negative for|free of|clear of|absence of|resol(?:ved|ution of)|rather than'
    r'|nor|neither|not (?:show|demonstrate|see|have))\b')
_NOT_AFTER = re.compile(
    r'\b(?:(?:is|are|was) (?:not|no longer) (?:\w+ )?(?:seen|identified|visible|visualized|present|evident'
    r'|appreciated)|(?:is|are) (?:absent|excluded|unlikely)|(?:has|have) (?:\w+ )?(?:resolved|cleared)'
    r'|not (?:seen|identified))')
_SECTION = re.compile(r'^\s*([A-Z][A-Z /&()-]+):', re.M)


def sections(text: str) -> dict[str, str]:
    """{'findings': ..., 'impression': ...} of a report; a text without either heading is all findings."""
    heads = list(_SECTION.finditer(text))
    ends = [h.start() for h in heads[1:]] + [len(text)]
    parts = {h[1].strip().lower(): text[h.end():end].strip() for h, end in zip(heads, ends)}
    return {k: v for k, v in parts.items() if k in ('findings', 'impression')} or {'findings': text}


def labels(text: str) -> np.ndarray:
    """The labels of a report, float32 [8] as LABELS: 1 present, 0 absent, -1 uncertain, nan not mentioned."""
    statuses: dict[str, set[int]] = {name: set() for name in LABELS}
    body = ' '.join(re.sub(r'\bvs\.', 'versus', s) for s in sections(text).values())
    for sentence in re.split(r'[.;:?!]|\n\s*\n|\b\d\)', ' '.join(body.lower().split())):
        start = 0
        for end in [b.start() for b in _BREAK.finditer(sentence)] + [len(sentence)]:
            clause, start = sentence[start:end], end
            for name, pattern in _MENTION.items():
                statuses[name].update(_status(clause, m) for m in pattern.finditer(clause))
            if _BORDERLINE.search(clause):
                statuses['Cardiomegaly'].add(-1)
            elif _NORMAL.search(clause):
                statuses['Cardiomegaly'].add(0)
    return np.array([next((v for v in (1, -1, 0) if v in statuses[name]), np.nan) for name in LABELS], np.float32)


def _status(clause, mention):
    before, after = clause[:mention.end()], clause[mention.end():]
    if _BEFORE.search(before) or _AFTER.search(after):
        return -1
    if 'clear' in mention[0] or _NOT_BEFORE.search(before) or _NOT_AFTER.search(after):
        return 0
    return 1
