"""Images that the host holds or decodes: the same batches whoever reads them, and what happens to
files that cannot be read.
"""

import io
import os
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kd_jax import data as data_lib
from kd_jax import feed
from kd_jax.data import crops, decoding, quick, stream
from kd_jax.data.batches import Share, TrainOrder
from kd_jax.errors import UserError
from kd_jax.feed import Feed, Reading

SIDE = 12


def settings(**fields):
    return data_lib.Settings(**{'source': 'folder', 'size': SIDE, 'cache': 'off'} | fields)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """48 pictures of many sizes, half of them JPEG."""
    root, rng = tmp_path_factory.mktemp('images'), np.random.default_rng(0)
    for k in range(48):
        folder = root / f'class {k % 3}'
        folder.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (13 + k % 9, 15 + k % 5, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{k}.{"png" if k % 2 else "jpg"}')
    return root


@pytest.fixture(scope='module')
def order():
    return TrainOrder(np.arange(30), 30, 8, seed=3)


def batches(source, order, first=0, last=9, crop=None, workers=0, **how):
    with Feed(
        Reading(source, Share(order, 0, 8, **how), first, last, crop), workers=workers
    ) as ahead:
        return [ahead.get()[0] for _ in range(first, last)]


def same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_arrays_files_and_processes_give_the_same_batches(root, order):
    arrays = data_lib.load(settings(path=str(root)))
    files = data_lib.load(settings(path=str(root), placement='stream'))
    assert not arrays.train.streamed and files.train.streamed
    assert arrays.info.count == files.info.count
    np.testing.assert_allclose(arrays.info.mean, files.info.mean, atol=1e-12)
    expected = batches(arrays.train, order, far=1)
    same(batches(files.train, order, far=1), expected)
    same(batches(files.train, order, far=1, workers=2), expected)
    for name in ('image', 'label'):
        of = getattr(arrays.train, name)
        for batch in expected:
            np.testing.assert_array_equal(batch[name], of[batch['index']])
            np.testing.assert_array_equal(batch[f'partner_{name}'], of[batch['partner_index']])


def test_a_share_of_a_batch_is_that_part_of_it(root, order):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    whole = batches(files, order, far=1)
    for first, size in ((0, 2), (2, 4), (6, 2)):
        with Feed(Reading(files, Share(order, first, size, far=1), 0, 9)) as ahead:
            for batch in whole:
                part = {name: of[first : first + size] for name, of in batch.items()}
                same([ahead.get()[0]], [part])


def test_batches_can_begin_anywhere(root, order):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    same(batches(files, order, first=4), batches(files, order)[4:])


def test_views_of_photos_are_functions_of_seed_index_and_pass(root, order):
    whole = data_lib.load(settings(path=str(root), decode='photo'))
    crop = crops.Crop(0.1, seed=5)
    one = batches(whole.train, order, crop=crop)
    same(batches(whole.train, order, crop=crop, workers=1), one)
    images = np.concatenate([batch['image'] for batch in one])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)
    other = batches(whole.train, order, crop=crop._replace(seed=6))
    assert any((a['image'] != b['image']).any() for a, b in zip(one, other, strict=True))
    again = batches(whole.train, order, crop=crop._replace(repeated=2))
    seen = {}
    for batch in again:
        for index, view, image in zip(batch['index'], batch['view'], batch['image'], strict=True):
            first = seen.setdefault((int(index), int(view) % 2), image)
            np.testing.assert_array_equal(first, image)
    assert len(seen) > 30


def test_boxes_are_those_of_the_paper():
    """8 to 100 % of the area, ratios from 3/4 to 4/3, anywhere; the middle of what is too long."""
    crop, found = crops.Crop(0.08, seed=1), []
    for index in range(2000):
        left, top, width, height = crop.draw(index, 0)(500, 375)
        assert left >= 0 and top >= 0 and left + width <= 500 and top + height <= 375
        found.append((left, top, width, height))
    left, top, width, height = np.array(found).T
    share, ratio = width * height / (500 * 375), width / height
    assert 0.079 < share.min() < 0.09 and 0.95 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.77 and 1.3 < ratio.max() < 1.36
    # log-uniform ratios have as many below 1 as above, but wide ones fit more often here
    assert 0.45 < (ratio > 1).mean() < 0.62
    assert 0.4 < share.mean() < 0.5  # large ones fit less often
    assert crops.random_box(np.full((crops.TRIES, 4), 0.99), 0.9, 1000, 10) == (493, 0, 13, 10)
    assert crops.random_box(np.full((crops.TRIES, 4), 0.99), 0.9, 10, 1000) == (0, 493, 10, 13)


def test_parts_of_photos_are_what_pillow_cuts_and_resizes(tmp_path):
    """Where that enlarges them, to a grey level; where it shrinks them a little it is sharper."""
    photo = Image.effect_noise((64, 48), 80).convert('RGB')
    photo.save(tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    form = decoding.Form(40, 3, bilinear=True)
    found = form.decode(content, lambda width, height: (5, 7, 30, 20))
    expected = photo.crop((5, 7, 35, 27)).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1
    # what is far larger is averaged
    found = decoding.Form(10, 3, bilinear=True).decode(content, lambda *_: (4, 8, 40, 40))
    expected = np.asarray(photo, float)[8:48, 4:44].reshape(10, 4, 10, 4, 3).mean((1, 3))
    assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize('mode', ['RGB', 'L'])
@pytest.mark.parametrize('ending', ['jpg', 'png'])
@pytest.mark.parametrize('channels', [1, 3])
def test_what_is_decoded_quickly_is_what_pillow_decodes(tmp_path, mode, ending, channels):
    """To the bit; the kinds that are left to Pillow are those of `test_only_plain_files...`."""
    noise = Image.effect_noise((40, 40), 90)
    photo = Image.merge('RGB', [noise, noise.rotate(90), noise.rotate(180)]).convert(mode)
    photo.save(tmp_path / f'a.{ending}')
    content = (tmp_path / f'a.{ending}').read_bytes()
    known = quick.plain(content)
    assert known[:4] == (40, 40, len(photo.getbands()), ending == 'jpg')
    opened = Image.open(tmp_path / f'a.{ending}')
    opened.draft('L' if channels == 1 else 'RGB', (40, 40))
    expected = np.asarray(opened.convert('L' if channels == 1 else 'RGB')).reshape(40, 40, channels)
    np.testing.assert_array_equal(decoding.Form(40, channels).decode(content), expected)
    if ending == 'png' and mode == 'RGB' and channels == 1:
        return  # colours that become grey by another formula
    for rows in (1, 7, 23, 24, 40):  # no row depends on what comes later
        part = quick.pixels(content, known, channels, rows)[:rows].astype(int)
        assert np.abs(part - expected[:rows]).max() <= 4


def test_only_plain_files_are_decoded_quickly(tmp_path):
    photo, path = Image.effect_noise((40, 30), 90).convert('RGB'), tmp_path / 'a'

    def saved(image, kind, **options):
        image.save(path, kind, **options)
        return path.read_bytes()

    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    alpha = photo.convert('RGBA')
    alpha.putalpha(100)
    left = {
        'turned': saved(photo, 'JPEG', exif=exif),
        'inks': saved(photo.convert('CMYK'), 'JPEG'),
        'palette': saved(photo.convert('P'), 'PNG'),
        'alpha': saved(alpha, 'PNG'),
        'one colour is transparent': saved(photo, 'PNG', transparency=(1, 2, 3)),
        '16 bits': saved(Image.fromarray(np.zeros((4, 4), np.uint16)), 'PNG'),
        'WebP': saved(photo, 'WEBP'),
    }
    assert [name for name, content in left.items() if quick.plain(content)] == []
    for kind in ('JPEG', 'PNG'):
        content = saved(photo, kind)
        assert quick.plain(content) and not quick.plain(b'')
        for cut in range(0, len(content) - 12, 7):
            assert quick.plain(content[:cut]) is None
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    assert quick.plain(bytes(damaged)) is None
    with pytest.raises(decoding.Bad):
        decoding.Form(20, 3).decode(bytes(damaged))


def test_the_usual_resize_and_crop_of_an_evaluation(tmp_path):
    photo = Image.effect_noise((100, 80), 80).convert('RGB')
    photo.save(tmp_path / 'a.png')
    found = decoding.Form(28, 3, 32, bilinear=True).decode((tmp_path / 'a.png').read_bytes())
    expected = photo.resize((40, 32), Image.Resampling.BILINEAR).crop((6, 2, 34, 30))
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_photos_on_their_side_are_cut_upright(tmp_path):
    upright = Image.effect_noise((64, 48), 80).convert('RGB')
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6  # to be turned clockwise by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'a.png', exif=exif)
    form, sizes = decoding.Form(40, 3, bilinear=True), []

    def box(width, height):
        sizes.append((width, height))
        return 5, 7, 30, 20

    found = form.decode((tmp_path / 'a.png').read_bytes(), box)
    assert sizes == [(64, 48)]
    expected = upright.crop((5, 7, 35, 27)).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 1


def test_large_photos_are_decoded_at_a_fraction(tmp_path):
    """As far as that leaves the pixels that are needed, and looks the same."""
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    photo = Image.fromarray(np.broadcast_to(ramp[None, :, None], (600, 800, 3)).copy())
    photo.save(tmp_path / 'a.jpg', quality=95)
    content = (tmp_path / 'a.jpg').read_bytes()
    found = decoding.Form(20, 3).decode(content, lambda width, height: (100, 50, 400, 400))
    expected = photo.crop((100, 50, 500, 450)).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 4


class Slow:
    """Files that are read one at a time, each after a while."""

    def __init__(self, reader, seconds):
        self.reader, self.seconds = reader, seconds
        self.name, self.describe = reader.name, reader.describe

    def content(self, number):
        time.sleep(self.seconds)
        return self.reader.content(number)


def test_waiting_is_counted_while_nobody_is_busy(root, order):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    slow = files.__class__(Slow(files.reader, 0.05), files.label, files.rows, files.form)
    with Feed(Reading(slow, Share(order, 0, 8), 0, 4)) as ahead:
        waited = [ahead.get(partial(bool, busy))[1] for busy in (True, True, False, False)]
    assert waited[:2] == [0.0, 0.0]
    assert sum(waited[2:]) > 0.01


def test_groups_are_finished_while_they_are_read(root, order):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    sizes = {0: 2, 2: 3, 5: 1, 6: 3}
    finish = lambda group: feed.stacked(group, 3)['index']  # noqa: E731
    with Feed(Reading(files, Share(order, 0, 8), 0, 9), sizes.__getitem__, finish) as ahead:
        for first, count in sizes.items():
            assert ahead.next == first
            found = ahead.get()[0]
            assert found.shape == (3, 8)
            for k in range(3):
                expected = order.at(first + min(k, count - 1))['index']
                np.testing.assert_array_equal(found[k], expected)


def test_a_file_that_is_gone_counts_nowhere_and_is_named(root, order, tmp_path, capsys):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    whole = batches(files, order)
    number = int(whole[2]['index'][3])
    path = Path(files.reader.name(int(files.rows[number])))
    content = path.read_bytes()
    for broken in (b'', content[:40], b'no image at all'):
        path.write_bytes(broken)
        try:
            found = batches(files, order)
        finally:
            path.write_bytes(content)
        for batch, before in zip(found, whole, strict=True):
            gone = batch['index'] == number
            np.testing.assert_array_equal(batch['mask'], 1.0 - gone)
            np.testing.assert_array_equal(batch['image'][~gone], before['image'][~gone])
    assert str(path) in capsys.readouterr().err
    strict = files.__class__(files.reader, files.label, files.rows, files.form, 'error')
    os.rename(path, tmp_path / 'elsewhere')
    try:
        with pytest.raises(UserError, match='on_bad_image'):
            batches(strict, order)
        with pytest.raises(UserError, match='on_bad_image'):
            batches(strict, order, workers=1)
    finally:
        os.rename(tmp_path / 'elsewhere', path)


def test_a_batch_of_which_nothing_can_be_read_is_refused(root, order):
    files = data_lib.load(settings(path=str(root), placement='stream')).train
    moved = root.with_name('moved')
    root.rename(moved)
    try:
        with pytest.raises(UserError, match='no image of a batch of 8 can be read'):
            batches(files, order)
    finally:
        moved.rename(root)


def test_a_process_that_is_killed_is_replaced(root, order, capsys):
    import multiprocessing

    files = data_lib.load(settings(path=str(root), placement='stream')).train
    expected = batches(files, order, last=40)
    with Feed(Reading(files, Share(order, 0, 8), 0, 40), workers=1) as ahead:
        found = [ahead.get()[0] for _ in range(3)]
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGKILL)
        found += [ahead.get()[0] for _ in range(37)]
    same(found, expected)
    assert 'ended (exit code -9)' in capsys.readouterr().err


@pytest.mark.parametrize(
    'fields, sentence',
    [
        ({'decode': 'photo', 'placement': 'resident'}, "data.decode is 'photo'"),
        ({'resize': 10}, 'data.resize is 10, of which no 12 pixels'),
        ({'source': 'digits', 'placement': 'stream'}, "data.placement is 'stream'"),
        ({'source': 'digits', 'decode': 'photo'}, "data.decode is 'photo'"),
    ],
)
def test_what_cannot_be_is_refused(root, fields, sentence):
    with pytest.raises(UserError, match=sentence):
        data_lib.load(settings(**{'path': str(root)} | fields))


def test_sets_too_large_for_arrays_are_streamed(root, monkeypatch):
    from kd_jax.data import folder

    monkeypatch.setattr(folder, 'MAX_BYTES', 48 * SIDE**2 * 3 - 1)
    assert data_lib.load(settings(path=str(root))).train.streamed
    with pytest.raises(UserError, match="set data.placement='stream'"):
        data_lib.load(settings(path=str(root), placement='host'))
    monkeypatch.setattr(folder, 'MAX_BYTES', 48 * SIDE**2 * 3)
    assert not data_lib.load(settings(path=str(root))).train.streamed


def test_the_advice_fits():
    images = SimpleNamespace(placement='stream', workers=0)
    assert 'host' in feed.advice(images, 'square')
    assert 'host' not in feed.advice(images, 'photo')
    assert 'sharded' in feed.advice(SimpleNamespace(placement='host', workers=0), 'square')


def test_threads_share_the_pieces_of_a_batch():
    done = np.zeros(1000, int)

    def work(places):
        for place in places:
            done[place] += 1

    for count in (0, 1, 7, 1000):
        done[:] = 0
        stream.each_piece(work, count)
        assert (done[:count] == 1).all() and not done[count:].any()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('reduction', [2, 4, 8])
def test_a_reduced_photo_is_what_pillow_drafts(channels, reduction):
    file, noise = io.BytesIO(), Image.effect_noise((121, 83), 60)
    Image.merge('RGB', [noise, noise.rotate(180), noise]).save(file, 'JPEG', quality=95)
    content, opened = file.getvalue(), Image.open(file)
    size = (121 // reduction, 83 // reduction)
    opened.draft('L' if channels == 1 else 'RGB', size)
    expected = np.asarray(opened).reshape(opened.height, opened.width, channels)
    known = quick.plain(content)
    np.testing.assert_array_equal(quick.pixels(content, known, channels, 0, reduction), expected)
    some = quick.pixels(content, known, channels, 40, reduction)[: 40 // reduction]
    assert np.abs(some.astype(int) - expected[: 40 // reduction]).max() <= 4
