"""What transformers of Hugging Face and of timm say, as numbers: python -m tests.reference.transformer_numbers [case
...] writes tests/reference/transformer_numbers.json.

The weights follow from their names by torchvision_numbers.values, so that only the names, shapes and outputs are
stored, the latter computed in float64. Needs torch, transformers and timm; the tests read the file and need none of
them. Each case of the file holds `tensors` {name in the library's own file: shape}, `about` (its config.json, where it
writes one) and `out` {our output: sample of theirs}; a test makes the file by `tensors` below, loads it and compares.

A further case is one line of CASES: a class of transformers and the options of its configuration, or 'timm' and those
of timm's VisionTransformer. `inputs` makes what it is asked, an image or, where it has a vocabulary, tokens. A third
entry is the side of an image of another size, for which the library resizes its positions. 'dinov2' is a grid of
positions resized as in the published code of DINOv2 (interpolate_pos_encoding): torch alone.
"""
import json
import pathlib
import sys
import tempfile

import numpy as np

from tests.reference import torchvision_numbers as numbers

FILE = pathlib.Path(__file__).with_suffix('.json')
CLASSES = 5
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
TIMM = dict(embed_dim=32, depth=2, num_heads=4, img_size=32, patch_size=8)
CASES = {
    'hf_vit': ('ViTForImageClassification', dict(SMALL, intermediate_size=96, num_labels=CLASSES)),
    'hf_dino': ('ViTModel', dict(SMALL, intermediate_size=128, layer_norm_eps=0.05)),
    'hf_dinov2': ('Dinov2Model', dict(SMALL, num_hidden_layers=3, image_size=56, patch_size=14)),
    'hf_dinov2_classes': ('Dinov2ForImageClassification',
                          dict(SMALL, image_size=28, patch_size=14, num_labels=CLASSES)),
    'hf_dinov2_registers': ('Dinov2WithRegistersModel', dict(SMALL, num_register_tokens=4)),
    'hf_bert': ('BertModel', dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                                  vocab_size=60,
                                  max_position_embeddings=24)),
    'hf_bert_pretraining': ('BertForPreTraining', dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                                       intermediate_size=96,
                                                       vocab_size=40, max_position_embeddings=20)),
    'timm_vit': ('timm', dict(TIMM, num_classes=CLASSES)),
    'timm_dinov2': ('timm', dict(TIMM, init_values=1e-5, num_classes=0)),
    'hf_vit_smaller': ('ViTModel', dict(SMALL, intermediate_size=128, image_size=56), 32),
    'hf_vit_larger': ('ViTModel', dict(SMALL, intermediate_size=128), 56),
    'hf_dinov2_smaller': ('Dinov2Model', dict(SMALL, image_size=56), 32),
    'hf_dinov2_larger': ('Dinov2Model', SMALL, 56),
    'hf_dinov2_registers_smaller': ('Dinov2WithRegistersModel', dict(SMALL, image_size=56, num_register_tokens=4), 32),
    'hf_dinov2_registers_larger': ('Dinov2WithRegistersModel', dict(SMALL, num_register_tokens=4), 56),
    'timm_vit_smaller': ('timm', dict(TIMM, img_size=56, num_classes=0, dynamic_img_size=True), 32),
    'timm_vit_larger': ('timm', dict(TIMM, num_classes=0, dynamic_img_size=True), 56),
    'timm_dinov2_registers_smaller': ('timm', dict(TIMM, img_size=56, init_values=1e-5, reg_tokens=4, num_classes=0,
                                                   no_embed_class=True, dynamic_img_size=True), 32),
    'timm_vit_mean': ('timm', dict(TIMM, num_classes=CLASSES, global_pool='avg')),
    'dinov2_smaller': ('dinov2', dict(width=32, grid=7), 4),
    'dinov2_larger': ('dinov2', dict(width=32, grid=4), 7),
    'timm_dinov2_registers': ('timm', dict(TIMM, init_values=1e-5, reg_tokens=4, no_embed_class=True, num_classes=0)),
}


def inputs(case):
    """Two images [2,3,S,S] in [0,1), or two rows of tokens [2,L], the second padded by zeros, with their mask."""
    options, *resized = CASES[case][1:]
    if 'vocab_size' not in options:
        side = resized[0] if resized else options.get('image_size', options.get('img_size'))
        return dict(pixel_values=numbers.picture(case, (2, 3, side, side)))
    tokens = (1 + numbers.picture(case, (2, 16)) * (options['vocab_size'] - 1)).astype(np.int64)
    tokens[1, 9:] = 0
    return dict(input_ids=tokens, attention_mask=(tokens > 0).astype(np.int64))


def tensors(shapes):
    """The file's tensors."""
    return {name: numbers.values(name, tuple(shape)) for name, shape in shapes.items()}


def hugging_face(case):
    """(tensors' shapes, config.json, outputs) of a class of transformers, through its own file."""
    import safetensors.numpy
    import torch
    import transformers
    kind, options, *resized = CASES[case]
    kind = getattr(transformers, kind)
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / 'model.safetensors'
        kind(kind.config_class(**options)).save_pretrained(folder)
        shapes = {k: v.shape for k, v in safetensors.numpy.load_file(file).items()}
        safetensors.numpy.save_file(tensors(shapes), file, {'format': 'pt'})
        model = kind.from_pretrained(folder, attn_implementation='eager').eval().double()
        about = json.loads((pathlib.Path(folder) / 'config.json').read_text())
    given = {k: torch.from_numpy(v) for k, v in inputs(case).items()}
    given = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    given |= dict(interpolate_pos_encoding=True) if resized and kind is transformers.ViTModel else {}
    body = getattr(model, model.base_model_prefix, model)
    with torch.no_grad():
        whole, seen = model(**given), body(**given, output_attentions=True)
    out = dict(tokens_out=seen.last_hidden_state, attention=torch.stack(seen.attentions, 1))
    if 'logits' in whole:
        out['logits'] = whole.logits
    return shapes, {k: about[k] for k in sorted(about) if isinstance(about[k], (int, float, str))}, out


def timm(case):
    """As hugging_face, of timm's VisionTransformer, which writes no configuration of its own."""
    import torch
    from timm.models.vision_transformer import VisionTransformer
    model = VisionTransformer(**CASES[case][1]).eval().double()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors(shapes).items()})
    x = torch.from_numpy(inputs(case)['pixel_values']).double()
    with torch.no_grad():
        out = dict(tokens_out=model.forward_features(x)) | (dict(logits=model(x)) if model.num_classes else {})
    return shapes, {}, out


def dinov2(case):
    """As hugging_face: one grid of positions, with the 0.1 that the authors' resizing adds to its scale."""
    import torch
    _, options, side = CASES[case]
    width, grid = options['width'], options['grid']
    shapes = dict(pos_embed=(1, 1 + grid * grid, width))
    table = torch.from_numpy(tensors(shapes)['pos_embed']).double()
    patches = table[:, 1:].reshape(1, grid, grid, width).permute(0, 3, 1, 2)
    scale = (side + 0.1) / grid
    out = torch.nn.functional.interpolate(patches, scale_factor=(scale, scale), mode='bicubic', antialias=False)
    return shapes, {}, dict(positions=torch.cat([table[0, :1], out[0].permute(1, 2, 0).reshape(-1, width)]))


def main():
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for case in sys.argv[1:] or CASES:
        shapes, about, out = dict(timm=timm, dinov2=dinov2).get(CASES[case][0], hugging_face)(case)
        found[case] = dict(about=about, tensors={k: list(v) for k, v in sorted(shapes.items())},
                           out={k: numbers.sample(v.numpy()) for k, v in out.items()})
    lines = (f'{json.dumps(case)}: {{\n' + ',\n'.join(f' {json.dumps(k)}: {json.dumps(v)}' for k, v in content.items())
             + '}'
             for case, content in sorted(found.items()))
    FILE.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
    main()
