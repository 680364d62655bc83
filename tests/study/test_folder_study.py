"""One command trains on a folder of images; a new process evaluates it."""

import json
import shutil

import commands
import numpy as np
from helpers import environment, random_splits
from PIL import Image

QUICK = [
    f'--config.runs.{run}.{field}'
    for run in ('teacher', 'alone', 'student')
    for field in ('model.name=cnn', 'epochs=1.', 'eval_every=1.', 'batch_size=16')
]


def test_all_that_is_named_is_the_folder(tmp_path):
    splits = random_splits()
    for split in ('train', 'test'):
        for k, (image, label) in enumerate(zip(*vars(splits.source(split)).values(), strict=True)):
            place = tmp_path / 'pets' / split / f'kind {label}'
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(image)[..., 0]).save(place / f'{k}.png')
    (tmp_path / 'pets/train/kind 0/bad.jpg').write_text('no image')
    for k, image in enumerate(random_splits(seed=1).test.image):
        place = tmp_path / f'more/{k % 2}'
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f'{k}.png')
    asked = [f'--config=folder:{tmp_path / "pets"}', '--workdir=w', '--config.tensorboard=False']
    asked.append('--config.data.unlabelled=more')
    how = {'env': environment(1, XDG_CACHE_HOME=str(tmp_path / 'cache')), 'cwd': tmp_path}
    done = commands.run('kd_jax.main', *asked, *QUICK, **how)
    assert done.returncode == 0, done.stderr
    assert f'1 of 87 files are left out: {tmp_path}/pets/train/kind 0/bad.jpg is no' in done.stderr
    info = json.loads((tmp_path / 'w/student/seed0/config.json').read_text())['data']
    assert info['class_names'] == ['kind 0', 'kind 1', 'kind 2']
    assert info['image_shape'] == [8, 8, 1] and info['count']['test'] == 26
    assert info['count']['unlabelled'] == 26
    alone = json.loads((tmp_path / 'w/alone/seed0/config.json').read_text())['data']
    assert alone['count'] == {k: n for k, n in info['count'].items() if k != 'unlabelled'}
    assert '26 more without labels; 3 classes; 8 × 8 × 1; student' in done.stdout
    assert 'and 26 without labels, 8 in each batch, of pets' in done.stdout
    assert len(list((tmp_path / 'cache/kd_jax/images/index').iterdir())) == 2
    shutil.rmtree(tmp_path / 'more')  # nobody wants them any more
    found = commands.run('kd_jax.evaluate', 'w/student', **how)
    recorded = json.loads((tmp_path / 'w/student/seed0/result.json').read_text())
    assert json.loads(found.stdout)['top1'] == recorded['test']['top1']

    none = commands.run('kd_jax.main', '--config=folder', '--workdir=v', **how)
    assert none.returncode == 2 and 'name the folder of your images' in none.stderr
    gone = commands.run('kd_jax.main', '--config=folder:/nowhere/at/all', '--workdir=v', **how)
    assert gone.returncode == 2 and 'there is no directory /nowhere/at/all' in gone.stderr
