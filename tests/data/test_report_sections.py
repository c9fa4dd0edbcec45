"""Sections of reports: words in capitals within a section belong to it, and the log counts what is read."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config
from jaxkd.data import pool, report_sections
from jaxkd.data.transforms import text, wordpiece

SUBHEADINGS = ('LUNGS', 'HEART', 'ET TUBE', 'CHF', 'PLEURA', 'LINES AND TUBES', 'BONES/SOFT TISSUES', 'PA AND LATERAL '
               'VIEWS OF THE CHEST', 'RIGHT UPPER LOBE (RUL)', 'ADDENDUM', 'LUNG HISTORY', 'NOTE')
CONTEXT = ('INDICATION', 'CLINICAL HISTORY', 'REASON FOR THIS EXAM', 'Comparison', 'TECHNIQUE', 'Examination',
           'COMPARISON STUDY', 'WET READ', 'HISTORY', 'Clinical information', 'INDICATION(S)')
SENTENCES = ('large mass, left.', 'no effusion: none', '3 cm above the carina', 'clear', 'see above.\nstable')


@pytest.mark.parametrize('report, section, read', [
    ('IMPRESSION: CHF: moderate edema.', 'both', 'chf moderate edema'),
    ('FINDINGS: ET TUBE: 3 cm above the carina. Large effusion. IMPRESSION: Edema.', 'both',
     'edema et tube 3 cm above the carina large effusion'),
    ('FINDINGS:\nLUNGS: Clear.\nHEART: Normal.\n\nIMPRESSION:\nSee above.', 'findings', 'lungs clear heart normal'),
    ('Findings: clear.\nTechnique: supine.\nImpression: normal.', 'both', 'normal clear'),
    ('FINDINGS: clear. In comparison: stable.', 'both', 'clear in comparison stable'),
    ('INDICATION: cough. XXXX IMPRESSION: normal. COMPARISON: none.', 'both', 'normal'),
    ('LUNGS: clear. HEART: normal.', 'both', 'lungs clear heart normal'),
])
def test_worked_examples(report, section, read):
    assert text.words(report, section) == read.split()


def body(phrases):
    return ' '.join(f'{name}: {sentence}' if name else sentence for name, sentence in phrases)


def in_any_case(names):
    """One of the names, each letter of which may be a capital."""
    return st.builds(lambda name, bits: ''.join(c.upper() if bits >> i & 1 else c for i, c in enumerate(name)),
                     st.sampled_from(names), st.integers(0, 2**24 - 1))


INVENTED = st.from_regex('[A-Z]{3,9}( [A-Z]{3,9}){0,2}', fullmatch=True).filter(
    lambda name: not any(word in ' '.join(report_sections.CONTEXT) for word in name.split()))
PHRASES = st.lists(st.tuples(st.one_of(st.sampled_from(('', *SUBHEADINGS)), INVENTED), st.sampled_from(SENTENCES)),
                   min_size=1, max_size=4)
KINDS = dict(findings=in_any_case(('findings',)),
             impression=in_any_case(('impression', 'impressions', 'conclusion', 'findings and impression',
                                     'findings/impression', 'findings & impressions')),
             context=st.one_of(st.sampled_from([name.upper() for name in CONTEXT]), st.sampled_from(CONTEXT)))
SECTIONS = st.lists(st.sampled_from([*KINDS]).flatmap(lambda kind: st.tuples(st.just(kind), KINDS[kind], PHRASES)),
                    min_size=1, max_size=6)


@pytest.fixture(scope='module')
def pieces(tmp_path_factory):
    """The letters and digits of what the transform wordpiece reads."""
    letters = [*'abcdefghijklmnopqrstuvwxyz0123456789']
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *':.,/()', *letters, *('##' + letter for letter in letters)]
    file = tmp_path_factory.mktemp('wordpiece') / 'vocab.txt'
    file.write_text('\n'.join(vocabulary))

    options = {**wordpiece.DEFAULTS, 'file': str(file), 'length': 1024}
    transforms = {section: wordpiece.build(ConfigDict({**options, 'section': section}))
                  for section in ('both', *report_sections.KINDS)}

    def read(report, section):
        ids = transforms[section].apply({'text': report})['tokens']
        assert 1 not in ids  # [UNK]
        return ''.join(vocabulary[i].removeprefix('##') for i in ids if i > 3 and vocabulary[i][-1].isalnum())
    return read


def words(content):
    return report_sections.WORD.findall(content.lower())


@given(st.sampled_from(('', 'A note. ')), SECTIONS, st.sampled_from((': ', ':\n', ' :\n\n  ')))
@settings(deadline=None, max_examples=250)
def test_any_template_keeps_the_words_of_its_sections(pieces, start, sections, colon):
    report = start + '\n'.join(f'{name}{colon}{body(phrases)}' for _, name, phrases in sections)
    bodies = {kind: words(' '.join(body(phrases) for k, _, phrases in sections if k == kind))
              for kind in ('impression', 'findings')}
    whole = words(report)
    for section, wanted in {**bodies, 'both': bodies['impression'] + bodies['findings'] or whole}.items():
        assert text.words(report, section) == wanted
        assert pieces(report, section) == ''.join(wanted)
    joined = ' '.join(f'{name} {body}' for _, name, body in report_sections.split(report))
    assert words(joined) == whole
    assert not report_sections.headings(report_sections.without_headings(report))


@given(st.text(st.sampled_from('AaBS:\n /()IMPRESSION'), max_size=60))
@settings(deadline=None, max_examples=200)
def test_any_text_is_divided_without_loss(report):
    parts = report_sections.split(report)
    assert len(parts) == 1 + len(report_sections.headings(report))
    assert sum(len(part.body) for part in parts) <= len(report) and parts[0].body == report[:len(parts[0].body)]


REPORTS = ('FINDINGS: LUNGS: a b c. TECHNIQUE: d', 'INDICATION: d e f g h. IMPRESSION: a', 'COMPARISON: a', 'a b')


@pytest.mark.parametrize('name', ['text', 'wordpiece'])
def test_the_log_counts_what_is_read(name, tmp_path, capsys):
    root, vocabulary = tmp_path / 'data', tmp_path / 'vocab.txt'
    root.mkdir()
    rows = ['patient_id,image,text,split,Mass', 'v,v.png,IMPRESSION: a,val,1', 't,t.png,IMPRESSION: a,test,1']
    for case in ('0', '1', '2', '3', 'v', 't'):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / f'{case}.png')
    rows += [f'p{i},{i}.png,{report},train,{i % 2}' for i, report in enumerate(REPORTS)]
    (root / 'cases.csv').write_text('\n'.join(rows))
    vocabulary.write_text('\n'.join(('[PAD]', '[UNK]', '[CLS]', '[SEP]', 'a', 'b')))

    def data(section):
        options = dict(text=dict(vocab=32), wordpiece=dict(file=str(vocabulary)))[name]
        return config.resolve(ConfigDict(dict(data=dict(
            source=dict(name='folder', root=str(root)), transforms=('image', name, 'labels'), image=dict(size=8),
            **{name: dict(section=section, length=8, **options)})))).data
    datasets = pool.DataPool()
    for _ in range(2):  # said once
        datasets.get(data('both'))
    assert capsys.readouterr().out.splitlines()[1:] == [
        f'{name}, training part: 4 reports: 60 % of their words are read with section="both", from the whole text (in '
        '2), FINDINGS (in 1), IMPRESSION (in 1); not read: TECHNIQUE (in 1), INDICATION (in 1)']
    datasets.get(data('impression'))
    assert capsys.readouterr().out.strip().endswith(
        'INDICATION (in 1), COMPARISON (in 1), before the first heading (in 1); 3 give no word, the first is 0.png')
