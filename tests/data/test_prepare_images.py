"""Images, reports and boxes as prepared cases: what comes back is what the transforms give without a store."""
import dataclasses
import pathlib
import pickle
import tracemalloc

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import config, errors, parallel
from jaxkd.contracts import Transform
from jaxkd.data import loader, pool, prepare, source
from jaxkd.data.formats import rle
from jaxkd.data.stores import columns, identity, reader, writer
from tests.data.test_prepare import SETTINGS, Toy, contents

rng = np.random.default_rng


def folder(root, n=12):
    """Images of several kinds and sizes, reports in files, boxes of some; the third is of 16 bits."""
    root.mkdir()
    rows, boxes = ['patient_id,image,text_file,split,a,b'], ['image,label,x,y,w,h']
    for i in range(n):
        height, width = 40 + i, 50 - i
        pixels = rng(i).integers(0, 256, (height, width, 3) if i % 4 == 1 else (height, width), np.uint8)
        name = f'{i}.{"jpg" if i % 3 == 0 else "png"}'
        Image.fromarray(pixels.astype(np.uint16) * 257 + 3 if i == 2 else pixels).save(root / name)
        (root / f'{i}.txt').write_text(f'FINDINGS: word{i % 5} heart {"large" if i % 2 else "small"} \u00e4.')
        part = 'train' if i < 8 else 'val' if i < 10 else 'test'
        rows.append(f'p{i},{name},{i}.txt,{part},{i % 2},{-1 if i == 3 else ""}')
        boxes += [f'{name},a,{x},3,9,8' for x in range(i % 3)]
    (root / 'cases.csv').write_text('\n'.join(rows))
    (root / 'boxes.csv').write_text('\n'.join(boxes))
    return root


def resolved(root, **more):
    """A resolved data config of that folder."""
    base = dict(source=dict(name='folder', root=str(root)), transforms=('image', 'text', 'labels'),
                image=dict(size=40, fit='squash'),
                text=dict(length=8, vocab=32), cache='none')
    return config.resolve(ConfigDict(dict(data=base | more))).data


def on_disk(hp, out):
    prepare.prepare(hp, out)
    return changed(hp, cache='disk', folder=str(out))


def changed(hp, **more):
    return config.resolve(ConfigDict(dict(data=hp.to_dict() | more))).data


def same(a, b):
    """Two records or batches are equal, bit for bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize('transforms', [('image', 'text', 'labels'), ('image', 'labels', 'text'), ('image', 'labels')])
def test_records_and_batches_are_those_of_the_files(tmp_path, transforms):
    hp = resolved(folder(tmp_path / 'x'), transforms=transforms)
    disk_hp = on_disk(hp, tmp_path / 'made')
    files, disk = pool.build(hp), pool.build(disk_hp)
    for i in range(12):
        same(files[i], disk[i])
    same(files.batch([5, 2, 3, 2]), disk.batch(np.array([5, 2, 3, 2])))
    same(*(list(loader.eval_batches(d, d.partition.indices('train'), 3)) for d in (files, disk)))
    for augment in ((), ('affine',)):
        a, b = (pool.build(changed(h, augment=augment)) for h in (hp, disk_hp))
        a, b = (loader.train_loader(d, 4, seed=3, start=1) for d in (a, b))
        for _ in range(5):
            same(next(a), next(b))
        a.close()
        b.close()


def test_what_is_told_without_images_is_the_same_from_the_store(tmp_path):
    root = folder(tmp_path / 'x')
    hp = resolved(root, augment=('affine',))
    files, disk = pool.build(hp), pool.build(on_disk(hp, tmp_path / 'made'))
    for file in [*root.glob('*.png'), *root.glob('*.jpg')]:
        file.unlink()
    text_only = pickle.loads(pickle.dumps(disk.text_only))  # as reader processes get it
    for i in range(12):
        same(files.text_only[i], disk.text_only[i])
        same(files.text_only[i], text_only[i])
    assert disk.text_only.store.arrays.keys() == {'label'} and 'image' in disk.store.arrays
    a, b = (loader.train_loader(d.text_only, 4, seed=3) for d in (files, disk))
    for _ in range(5):
        batch = next(a)
        same(batch, next(b))
        assert set(batch) == {'tokens', 'present', 'label', 'label_weight', 'mask', 'index'}
    a.close()
    b.close()


def test_a_big_store_has_no_more_files_than_a_process_may_open():
    flat = dict(image=np.zeros((224, 224, 3), np.float32), text='FINDINGS: none.', boxes=np.zeros((2, 5), np.float32))
    for count in (1, 5000, 377_110):
        plan = columns.plan(flat, count)
        assert 1 <= len(columns.shard_files(pathlib.Path(), plan, count)) <= columns.MAX_SHARDS


def test_the_stream_without_augmentation_is_that_with_one_that_changes_nothing(tmp_path, monkeypatch):
    hp = resolved(folder(tmp_path / 'x'))
    data = pool.build(hp)
    stream = loader.train_loader(data, 4, seed=1)
    whole = [next(stream) for _ in range(6)]  # of several passes
    stream.close()
    for hosts in (2, 4):
        shares = []
        for host in range(hosts):
            monkeypatch.setattr(parallel, 'process', lambda at=(host, hosts): at)
            stream = loader.train_loader(data, 4, seed=1, start=2)
            shares.append([next(stream) for _ in range(4)])
            stream.close()
        monkeypatch.undo()
        for step, of in enumerate(zip(*shares)):
            joined = jax.tree.map(lambda *rows: np.concatenate(rows), *of)  # a block of rows each
            same(joined, whole[2 + step])
    data = dataclasses.replace(data, transforms=dataclasses.replace(data.transforms,
                                                                    augment=(Transform(_unchanged, random=True),)))
    stream = loader.train_loader(data, 4, seed=1)
    for batch in whole:
        same(batch, next(stream))
    stream.close()


def _unchanged(record, rng):
    return record


def test_readers_get_the_store_by_its_path_and_no_table(tmp_path):
    data = pool.build(on_disk(resolved(folder(tmp_path / 'x'), transforms=('image', 'labels')), tmp_path / 'made'))
    sent = pickle.dumps(data)
    assert len(sent) < 20_000 and b'p11' not in sent
    same(pickle.loads(sent).batch([7, 1]), data.batch([7, 1]))
    data.config.boxes = 1
    with pytest.raises(errors.BadData, match='Case 2.png has 2 boxes, more than data.boxes = 1'):
        pickle.loads(pickle.dumps(data)).batch([0, 2])


@pytest.mark.slow
def test_batches_are_the_same_from_reader_processes(tmp_path):
    hp = on_disk(resolved(folder(tmp_path / 'x')), tmp_path / 'made')
    here, there = (loader.train_loader(pool.build(changed(hp, workers=workers)), 4, seed=0) for workers in (0, 2))
    for _ in range(4):
        same(next(here), next(there))
    here.close()
    there.close()


def test_eight_bits_are_kept_as_bytes_and_others_exactly(tmp_path):
    hp = resolved(folder(tmp_path / 'x'))
    made = prepare.prepare(hp, tmp_path / 'made')
    assert made.arrays['image'].dtype == np.uint8
    assert made.arrays['image'].shape == (12, 40, 40, 1) == (len(made), *made[2]['image'].shape)
    assert made.metadata['packed'] == ['image'] and made[1]['image'].dtype == np.float32
    assert not made.arrays['image'][2].any() and 'image' in made.ragged(2) and 'image' not in made.ragged(1)  # 16 bits
    batch, rest = made.batch([1, 2])
    np.testing.assert_array_equal(batch['image'][1], made[2]['image'])
    assert 'image' not in rest[1]


@settings(deadline=None)
@given(st.integers(0, 255), st.sampled_from([0, 1e-7, -1e-7, np.nan, np.inf, 1]))
def test_only_what_comes_back_bit_for_bit_is_packed(k, off):
    image = np.full((36, 36, 1), np.float32(k) / 255, np.float32)
    image[3, 4] += np.float32(off)
    plan = columns.plan({'image': image}, 1)
    back = columns.unpack(np.rint(image * 255).astype(np.uint8)) if plan['packed'] else image
    assert back.tobytes() == image.tobytes()
    assert bool(plan['packed']) == (image[3, 4, 0] in np.arange(256, dtype=np.float32) / 255)
    assert columns.plan({'image': -np.zeros((36, 36, 1), np.float32)}, 1)['packed'] == []  # -0.0


def test_training_starts_without_images_and_reports(tmp_path, monkeypatch):
    root = folder(tmp_path / 'x')
    hp = on_disk(resolved(root), tmp_path / 'made')
    want = pool.build(hp)
    for file in [*root.glob('*.png'), *root.glob('*.jpg'), *root.glob('*.txt')]:
        file.unlink()
    monkeypatch.setattr(reader, 'MAX_STAT_CASES', 11)  # as for a source of more cases than are looked at
    data = pool.build(hp)
    assert data.transforms.fitted == want.transforms.fitted and 'word1' in data.transforms.fitted['text']['words']
    for i in range(12):
        same(data[i], want[i])


def test_files_of_many_cases_are_looked_at_by_prepare_alone(tmp_path, monkeypatch):
    class Many(Toy):
        looked = 0

        def paths(self, i):
            self.looked += 1
            return (__file__,)
    toy = Many()
    monkeypatch.setattr(reader, 'MAX_STAT_CASES', 6)
    writer.write(toy, (), tmp_path, SETTINGS)
    assert toy.looked == 7
    assert identity.settings(ConfigDict(dict(source={}, transforms=())), toy)
    reader.open(tmp_path, SETTINGS, toy)
    assert toy.looked == 7
    writer.write(toy, (), tmp_path, SETTINGS)
    assert toy.looked == 14
    monkeypatch.setattr(reader, 'MAX_STAT_CASES', 7)
    reader.open(tmp_path, SETTINGS, toy)
    assert toy.looked == 21


def test_a_corrected_label_report_or_box_is_noticed(tmp_path):
    root = folder(tmp_path / 'x')
    hp = on_disk(resolved(root), tmp_path / 'made')
    for name, old, new in (('cases.csv', 'train,1,', 'train,0,'), ('boxes.csv', 'a,1,3,9,8', 'a,1,3,9,7')):
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, 1))
        with pytest.raises(errors.ConfigError, match='made was prepared with other settings: the ids or labels'):
            pool.build(hp)
        (root / name).write_text(text)
    pool.build(hp)
    with pytest.raises(errors.ConfigError, match='image.size was 40, and is 48 now'):
        pool.build(changed(hp, image=hp.image.to_dict() | dict(size=48)))


def test_an_interrupted_file_of_texts_is_made_again_and_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, 'SHARD', (3, 2**26))

    class Bad(Toy):
        bad = 7

        def __getitem__(self, i):
            if i == self.bad:
                raise errors.BadData(f'c{i} is cut short.')
            return super().__getitem__(i)
    toy = Bad(10)
    with pytest.raises(errors.BadData, match='c7 is cut'):
        writer.write(toy, (), tmp_path / 'x', SETTINGS, threads=1)
    shards = sorted(p.name for p in (tmp_path / 'x').glob('*.array_record'))
    assert shards == ['rest-00000-of-00004.array_record', 'rest-00001-of-00004.array_record']
    (tmp_path / 'x' / '.rest-00002-of-00004.array_record').write_bytes(b'torn')
    toy.bad, toy.asked = None, []
    made = writer.write(toy, (), tmp_path / 'x', SETTINGS, threads=1)
    assert toy.asked == [6, 7, 8, 9]
    writer.write(Toy(10), (), tmp_path / 'y', SETTINGS)
    assert contents(tmp_path / 'x') == contents(tmp_path / 'y')
    assert made.text(8) == Toy(10)[8]['text'] and made.text(2) == ''
    made.verify()


def test_damage_to_a_text_is_found_by_verify_and_when_it_is_read(tmp_path):
    made = writer.write(Toy(), (), tmp_path, SETTINGS)
    shard = made.shards[0]
    data = bytearray(shard.read_bytes())
    at = data.index(b'Report 4') if b'Report 4' in data else len(data) // 2
    data[at] ^= 1
    shard.write_bytes(data)
    made = reader.open(tmp_path)
    with pytest.raises(errors.Damaged, match=r'has changed since it was written'):
        made.verify()
    damaged = [i for i in range(7) if made.damaged_keys(i)]
    assert damaged
    with pytest.raises(errors.Damaged, match='rest-00000-of-00001.array_record'):
        made[damaged[0]]


def test_lists_are_kept_and_what_cannot_be_is_named(tmp_path):
    class Lists(Toy):
        def __getitem__(self, i):
            return super().__getitem__(i) | dict(table=[{'shape': 'round'}] * i, masks=np.ones((i, 3, 3)),
                                                 truth=object())
    made = writer.write(Lists(), (), tmp_path / 'x', SETTINGS)
    assert made[2]['table'] == [{'shape': 'round'}] * 2 and made[0]['table'] == [] and 'truth' not in made[1]
    assert made[0]['masks'] == '' and rle.decode_masks(made[2]['masks'], 'x').tolist() == np.ones((2, 3, 3)).tolist()

    class Odd(Toy):
        def __getitem__(self, i):
            return super().__getitem__(i) | dict(table=[object()])
    with pytest.raises(errors.ConfigError, match='Case c0: .*table.* cannot be stored'):
        writer.write(Odd(), (), tmp_path / 'y', SETTINGS, threads=1)


class Small(source.Source):
    """Many cases without a file."""

    name = 'small'

    def __init__(self, n):
        self.cases = tuple(source.Case(f'case{i:09}', f'p{i}') for i in range(n))

    def __getitem__(self, i):
        return dict(image=np.full((33, 33, 1), np.float32(i % 256) / 255, np.float32), label=np.float32([i]),
                    text=f'text {i}',
                    boxes=np.zeros((i % 2, 5), np.float32))


def test_memory_does_not_grow_with_the_number_of_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(columns, 'SHARD', (400, 2**26))

    def peak(n):
        writer.write(Small(n), (), tmp_path / f'{n}', SETTINGS)
        tracemalloc.start()
        made = reader.open(tmp_path / f'{n}')
        for at in range(0, n, 100):
            made.batch(np.arange(at, at + 100))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found
    peak(400)  # imports
    assert peak(1600) < 1.2 * peak(400) + 20_000


def test_the_tip_names_the_command_that_prepares(tmp_path, capsys):
    data = pool.build(resolved(folder(tmp_path / 'x'), cache='auto', ram_gib=1e-9))
    data.cache_in_memory()
    said = capsys.readouterr().out
    assert 'python -m jaxkd.data.prepare --config' in said and 'data.cache=disk' in said and not data.memory
