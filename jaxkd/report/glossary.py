"""The words of the report, in a sentence each."""
import re

from jaxkd.report.markup import Html, details, join, tag

TERMS = {
    'AUROC': 'Area under the ROC curve: how often a positive case gets a higher score than a negative one; chance 0.5.',
    'AUPRC': 'Area under the precision-recall curve (average precision). Chance is the share of positive cases.',
    'pixel AUPRC': 'That over pixels: how well a map tells the pixels of the true region from the rest.',
    'accuracy': 'Share of cases whose class is right; balanced: the mean over classes of their sensitivity.',
    'Brier score': 'Mean squared difference of probability and truth. 0 is perfect.',
    'ECE': 'Expected calibration error: mean distance of probability and observed frequency, over bins of probability.',
    'log loss': 'Mean of minus the log of the probability of what is true.',
    'sensitivity': 'Share of the positive cases that are called positive (recall).',
    'specificity': 'Share of the negative cases that are called negative.',
    'positive predictive value': 'Share of those called positive that are positive (precision). Depends on prevalence.',
    "Youden's index": 'Sensitivity plus specificity minus 1.',
    'Dice': 'Overlap of two regions: twice the common volume over the sum of both. 1 is perfect.',
    'IoU': 'Overlap of two regions: the common area over the joint area.',
    'HD95': '95th percentile of the distances between two surfaces.',
    'ASSD': 'Mean distance between two surfaces, both ways.',
    'NSD': 'Share of two surfaces that lie within a tolerance of each other.',
    'interval': 'What other test patients would change: quantiles over resamples of the patients (bootstrap).',
    'paired difference': 'Difference of two stages on the same cases and in the same resamples.',
    'privileged': 'An input that exists in training only: a teacher reads it, the deployed student does not.',
    'student': 'The network that is deployed; it learned from labels and from a teacher.',
    'arm': 'One of several stages with equal inputs, model and data, which differ in how they are trained.',
    'shuffled': 'A control: the teacher speaks of other cases of the same label, or of any where labels are hidden, so '
                'its knowledge of a case is lost.',
    'macro mean': 'Mean over labels, each with the same weight.',
    'best step': 'The step of training with the best score on the validation part. It is the one that is tested.',
    'operating point': 'A threshold on the score, chosen on the validation part, from which a case is called positive.',
    'last_mean': 'Attention of the class token in the last layer, mean over heads.',
    'rollout': 'Attention multiplied through all layers.',
    'grad_attn': 'Attention weighted by its gradient towards the label.',
    'grad_cam': 'Last map of a convolutional network, weighted by its gradient towards the label.',
    'best_head': 'The attention head that fits the answer best: an upper bound, as it knows the answer.',
    'hit': 'Share of images in which the brightest place of the map lies in the true region.',
    'lift': 'Share of the map that lies in the region over the share of the image that it covers. 1 is chance.',
    'CNR': 'Contrast to noise: distance of the means inside and outside the region over the root of both variances.',
    'mass inside': 'Share of the map that lies in the region.',
    '\u0394TPR': 'Sensitivity of cases with a shortcut minus that of those without; \u0394FPR: false positive rate.',
    'worst-group accuracy': 'Accuracy in the group of class and shortcut in which it is lowest.'}


def section(page: Html) -> Html:
    """The terms that are on a page."""
    found = {term: meaning for term, meaning in TERMS.items() if re.search(rf'(?<!\w){re.escape(term)}(?!\w)', page)}
    terms = [join([tag('dt', term), tag('dd', meaning)]) for term, meaning in found.items()]
    return details('Words of this page', tag('dl', *terms)) if terms else Html('')
