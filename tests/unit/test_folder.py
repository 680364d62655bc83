"""Folders of images: which files, which splits, what is decoded, what is kept."""

import io
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kd_jax import config as common
from kd_jax import data as data_lib
from kd_jax.data import __main__ as look
from kd_jax.data import decoding, folder, listing
from kd_jax.errors import UserError

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
SMOOTH = np.asarray(Image.fromarray(COLOURS[:5, :6]).resize((60, 40), Image.Resampling.BICUBIC))


def encoded(image, form='PNG', **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def shades(values):
    return Image.fromarray(np.asarray(values))


@pytest.fixture
def root(tmp_path):
    """Three classes of ten grey images of 12x16 pixels, each of one shade."""
    for number, name in enumerate(('cat', 'dog', 'Ünïcode ✓')):
        (tmp_path / name).mkdir()
        for k in range(10):
            shade = np.full((16, 12), 80 * number + k, np.uint8)
            shades(shade).save(tmp_path / name / f'{k}.png')
    return tmp_path


def load(root, **fields):
    settings = common.study().data
    settings.update({'source': 'folder', 'path': str(root), 'cache': 'off'} | fields)
    return data_lib.load(settings)


@pytest.mark.parametrize(('form', 'options'), [
    ('PNG', {}), ('JPEG', {'quality': 95}), ('WEBP', {'quality': 95}), ('BMP', {}), ('TIFF', {}),
    ('GIF', {}),
])  # fmt: skip
def test_every_format_gives_the_same_image(form, options):
    content = encoded(Image.fromarray(SMOOTH), form, **options)
    found = decoding.decode(content, 40, 3)
    assert found.shape == (40, 40, 3) and found.dtype == np.uint8
    error = np.abs(found.astype(int) - SMOOTH[:, 10:50]).mean()
    assert error < {'PNG': 1e-9, 'BMP': 1e-9, 'TIFF': 1e-9, 'GIF': 12}.get(form, 4)


def test_modes_become_eight_bits_on_white():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    grey = decoding.decode(encoded(shades(ramp)), 16, 1)[..., 0]
    np.testing.assert_array_equal(grey, ramp)
    wide = decoding.decode(encoded(shades(ramp.astype(np.uint16) * 257)), 16, 1)[..., 0]
    np.testing.assert_array_equal(wide, ramp)
    bits = decoding.decode(encoded(shades(ramp > 127)), 16, 1)[..., 0]
    np.testing.assert_array_equal(bits, np.where(ramp > 127, 255, 0))
    floats = decoding.decode(encoded(shades(ramp.astype(np.float32) / 255), 'TIFF'), 16, 1)
    np.testing.assert_array_equal(floats[..., 0], ramp)
    palette = decoding.decode(encoded(shades(COLOURS).quantize(256)), 40, 3)
    assert np.abs(palette.astype(int) - COLOURS[:, 5:45]).mean() < 40
    cmyk = decoding.decode(encoded(shades(COLOURS).convert('CMYK'), 'TIFF'), 40, 3)
    assert np.abs(cmyk.astype(int) - COLOURS[:, 5:45]).mean() < 3
    clear = np.dstack([COLOURS, np.zeros((40, 50), np.uint8)])
    assert (decoding.decode(encoded(shades(clear)), 40, 3) == 255).all()
    clear[..., 3] = 255
    np.testing.assert_array_equal(decoding.decode(encoded(shades(clear)), 40, 3), COLOURS[:, 5:45])


def test_images_stand_upright_and_only_the_first_frame_counts():
    image = Image.fromarray(SMOOTH)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), 'PNG', exif=exif)
    np.testing.assert_array_equal(decoding.decode(turned, 40, 3), SMOOTH[:, 10:50])
    assert decoding.header(turned)[:2] == (60, 40)
    frames = [Image.new('L', (8, 8), shade) for shade in (10, 200)]
    several = encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])
    assert (decoding.decode(several, 8, 1) == 10).all()


def test_the_middle_is_seen_at_the_size_asked():
    found = decoding.decode(encoded(Image.fromarray(SMOOTH)), 20, 3)
    wanted = Image.fromarray(SMOOTH).resize((30, 20), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(wanted)[:, 5:25]).mean() < 1
    large = Image.fromarray(SMOOTH).resize((1200, 800), Image.Resampling.BICUBIC)
    drafted = decoding.decode(encoded(large, 'JPEG', quality=95), 40, 3)
    assert np.abs(drafted.astype(int) - SMOOTH[:, 10:50]).mean() < 6


BOMB = encoded(Image.new('1', (40_000, 40_000)))


@pytest.mark.parametrize(
    ('content', 'why'),
    [
        (b'', 'is empty'),
        (b'hello', 'is no image'),
        (encoded(Image.fromarray(SMOOTH))[:-700], 'is cut short'),
        (encoded(Image.fromarray(SMOOTH), 'JPEG')[:600], 'is cut short'),
        (BOMB, 'claims more pixels than are decoded'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n', 'is no image'),
        (b'\x89PNG\r\n\x1a\n' + bytes(100), 'is no image'),
    ],
    ids=['empty', 'text', 'png', 'jpeg', 'bomb', 'eps', 'zeros'],
)
def test_what_is_no_image_is_said_in_words(content, why):
    with pytest.raises(decoding.Bad, match=f'^{why}'):
        decoding.decode(content, 16, 3)


def test_a_folder_of_classes_is_split_by_class(root):
    found = load(root, test_share=0.2)
    assert found.info.class_names == ('cat', 'dog', 'Ünïcode ✓')
    assert found.info.image_shape == (12, 12, 1)  # the median of the shorter sides
    assert found.info.count == {'train': 22, 'labelled': 22, 'val': 2, 'test': 6}
    assert np.bincount(found.test.label).tolist() == [2, 2, 2]
    assert found.notes == (f'{root} has no split test: 20% of each class are the test split',)
    every = np.concatenate([found.train.image, found.val.image, found.test.image])
    label = np.concatenate([found.train.label, found.val.label, found.test.label])
    assert (every == every[:, :1, :1]).all() and (every[:, 0, 0, 0] // 80 == label).all()
    assert len({*every[:, 0, 0, 0].tolist()}) == 30  # no image is in two splits
    again, other = load(root, test_share=0.2), load(root, test_share=0.2, val_seed=1)
    np.testing.assert_array_equal(again.test.image, found.test.image)
    assert not np.array_equal(other.test.image, found.test.image)


def test_splits_that_are_there_are_taken(root):
    for split in ('train', 'valid', 'test'):
        shutil.copytree(root / 'cat', root / 'in' / split / 'cat')
        shutil.copytree(root / 'dog', root / 'in' / split / 'dog')
    found = load(root / 'in')
    assert found.info.count == {'train': 20, 'labelled': 20, 'val': 20, 'test': 20}
    assert not found.notes and found.info.class_names == ('cat', 'dog')
    shutil.rmtree(root / 'in/test')
    found = load(root / 'in')
    assert found.info.count == {'train': 18, 'labelled': 18, 'val': 2, 'test': 20}
    assert found.notes == (f'{root / "in"} has no split test: val is the test split',)
    shutil.copytree(root / 'dog', root / 'in/valid/bird')
    with pytest.raises(
        UserError, match="class 'bird' of .* no training image .*it has some in test"
    ):
        load(root / 'in')


@pytest.mark.parametrize('ending', ['csv', 'jsonl', 'tsv'])
def test_a_table_names_the_images(root, ending):
    head, splits = ('path', 'label', 'split'), ('train', 'train', 'test')
    rows = [(f'cat/{k}.png', 'ten' if k % 2 else '9', splits[k % 3]) for k in range(9)]
    if ending == 'jsonl':
        lines = [json.dumps(dict(zip(head, row, strict=True))) for row in rows]
    else:
        mark = ',' if ending == 'csv' else '\t'
        lines = [mark.join(row) for row in [head, *rows]]
    (root / f'all.{ending}').write_text('\n'.join(lines) + '\n')
    found = load(root, labels=f'all.{ending}', val_share=0.2)
    assert found.info.class_names == ('9', 'ten')
    assert found.info.count == {'train': 5, 'labelled': 5, 'val': 1, 'test': 3}
    assert found.test.image[:, 0, 0, 0].tolist() == [2, 5, 8]
    assert found.test.label.tolist() == [
        0,
        1,
        0,
    ]


def test_names_that_are_numbers_are_in_their_order(root):
    items = [listing.Item('', name, '') for name in ('10', '9', '2')]
    assert listing.class_names(items) == ('2', '9', '10')


@pytest.mark.parametrize(
    ('text', 'name', 'sentence'),
    [
        ('path;label\n', 'x.csv', 'has the columns'),
        ('path,label\ncat/1.png,\n', 'x.csv', 'row 1 of .* lacks its path or its label'),
        ('path,label,split\ncat/1.png,a,tset\n', 'x.csv', "has the split 'tset'; it must be train"),
        ('[1]\n', 'x.jsonl', 'line 1 of .* is no JSON object'),
        ('path,label\n"cat', 'x.csv', 'is no table of commas'),
        ('path,label\ngone.png,a\ncat/2.png,a\n', 'x.csv', None),
    ],
)
def test_a_table_that_is_wrong_is_refused(root, text, name, sentence):
    (root / name).write_text(text)
    if sentence is None:
        with pytest.raises(UserError, match='the split .* has no image that can be read|1 of 2'):
            load(root, labels=name, on_bad_image='error')
    else:
        with pytest.raises(UserError, match=sentence):
            load(root, labels=name)


def test_damaged_files_are_left_out_and_told_or_the_end(root):
    (root / 'cat/0.png').write_bytes(b'')
    (root / 'dog/3.png').write_text('no image')
    (root / 'dog/notes.txt').write_text('not one, either')
    (root / 'dog/.hidden.png').write_text('hidden')
    found = load(root)
    assert sum(found.info.count[k] for k in ('train', 'val', 'test')) == 28
    (told,) = [note for note in found.notes if 'left out' in note]
    assert told == (
        f'2 of 30 files are left out: {root}/cat/0.png is empty; {root}/dog/3.png is no image'
    )
    with pytest.raises(UserError, match='2 of 30 files are left out: .*; mend them, or set d'):
        load(root, on_bad_image='error')
    for path in (root / 'dog').glob('[0-9].png'):
        path.write_bytes(b'')
    with pytest.raises(UserError, match="class 'dog' of .* has no training image that can be read"):
        load(root)


def test_links_are_followed_once_and_odd_names_are_read(root):
    os.symlink(root / 'cat', root / 'cat/loop')
    os.symlink(root / 'nowhere', root / 'cat/gone.png')
    os.symlink(root / 'dog', root / 'linked')
    shutil.copy(root / 'dog/1.png', os.fsencode(root / 'dog') + b'/\xff\xfe.png')
    found = load(root)
    assert found.info.class_names == ('cat', 'dog', 'linked', 'Ünïcode ✓')
    assert sum(found.info.count[k] for k in ('train', 'val', 'test')) == 42
    assert any('1 of 43 files are left out' in note for note in found.notes)


@pytest.mark.parametrize(
    ('make', 'sentence'),
    [
        (lambda root: root / 'gone', 'there is no directory'),
        (lambda root: root / 'cat/1.png', 'there is no directory'),
        (lambda root: root / 'cat', 'holds no images in folders of classes'),
        (lambda root: '', "data source 'folder' needs a directory; give it with data.path=DIR"),
        (lambda root: 'a' * 5000, 'File name too long'),
    ],
)
def test_what_is_no_folder_of_classes_is_refused(root, make, sentence):
    with pytest.raises(UserError, match=sentence):
        load(make(root))


def test_a_class_without_images_is_refused(root):
    (root / 'four').mkdir()
    with pytest.raises(UserError, match="class 'four' of .* holds no image; add some, or take the"):
        load(root)


def test_decoded_images_are_kept_and_found_again(root, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp('cache')
    plain, first = load(root), load(root, cache=str(cache))
    decoded = []
    monkeypatch.setattr(decoding, 'decode', lambda *_: decoded.append(1))
    again = load(root, cache=str(cache))
    assert not decoded and isinstance(again.test.image.base, np.memmap)
    for split in ('train', 'val', 'test'):
        for found in (first, again):
            np.testing.assert_array_equal(found.source(split).image, plain.source(split).image)
            np.testing.assert_array_equal(found.source(split).label, plain.source(split).label)
    monkeypatch.undo()
    (root / 'cat/1.png').write_bytes(b'')  # a change of any file is seen
    changed = load(root, cache=str(cache))
    assert any('1 of 30 files' in note for note in changed.notes)
    # a copy elsewhere is decoded again but kept once
    kept = {path.name for path in cache.iterdir()}
    shutil.copytree(root, root.with_name('copy'))
    load(root.with_name('copy'), cache=str(cache))
    assert {path.name for path in cache.iterdir()} == kept
    for path in cache.glob('index/*'):  # as many as there are, but not these
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {'good': [99] * len(record['good'])}))
    assert load(root, cache=str(cache)).info == changed.info
    for path in cache.glob('index/*'):
        path.write_text('{"key": "../../x"')
    assert load(root, cache=str(cache)).info == changed.info


def test_a_cache_that_cannot_be_written_costs_time_only(root, tmp_path_factory):
    place = tmp_path_factory.mktemp('cache') / 'file'
    place.write_text('')
    found = load(root, cache=str(place))
    assert any('images are not kept in' in note for note in found.notes)
    assert found.info == load(root).info


def test_the_side_follows_from_the_images(root):
    form = lambda items, **fields: folder.form_of(root, items, data_lib.Settings(**fields)).shape  # noqa: E731
    items = [SimpleNamespace(path=f'{k}.png') for k in range(3)]
    for k, (width, height) in enumerate(((100, 70), (50, 90), (300, 65))):
        Image.new('L', (width, height)).save(root / f'{k}.png')
    assert form(items) == (64, 64, 1)
    assert form(items, size=33) == (33, 33, 1)
    Image.new('RGB', (9, 9)).save(root / '0.png')
    Image.new('P', (9, 9)).save(root / '1.png')
    assert form(items) == (9, 9, 3)
    assert form(items[:1]) == (9, 9, 3)


def test_what_is_there_is_told_before_training(root, capsys, monkeypatch):
    for split, classes in (('train', ('cat', 'dog')), ('test', ('cat', 'dog'))):
        for name in classes:
            shutil.copytree(root / name, root / 'in' / split / name)
    for k, path in enumerate(sorted((root / 'in/test').rglob('*.png'))):
        if k > 1:  # two images stay the same as in train
            shades(np.full((20, 30), 3 * k, np.uint8)).save(path)
    (root / 'in/test/dog/9.png').write_bytes(b'')
    shades(COLOURS).save(root / 'in/train/cat/9.jpg')
    monkeypatch.setattr('sys.argv', ['x', str(root / 'in'), f'--sheet={root / "sheet.png"}'])
    look.main()
    said = capsys.readouterr().out
    assert '| cat | 11 | 10 |' in said and '| all | 21 | 19 |' in said
    assert '39 PNG, 1 JPEG; 39 grey, 1 in colour; width 12 to 50' in said
    assert f'1 files cannot be used:\n- {root}/in/test/dog/9.png is empty' in said
    assert '2 test or validation images are training images, too' in said
    assert f'- {root}/in/train/cat/0.png = {root}/in/test/cat/0.png' in said
    assert 'A training sees 19 training, 2 validation and 19 test images of 12 x 12 x 3' in said
    sheet = Image.open(root / 'sheet.png')
    assert sheet.size[0] == look.COLUMNS * look.TILE and len(np.unique(np.asarray(sheet))) > 20
    for path in (root / 'in/train/dog').iterdir():
        path.write_bytes(b'')
    with pytest.raises(SystemExit) as ended:
        look.main()
    assert ended.value.code == 2
    assert 'a training would be refused: class ' in capsys.readouterr().err
