"""The documentation's commands run, page by page, in a scratch copy; its site is built and crawled.

A command is shortened by overrides of its own: one epoch, one seed, the plain CNN. Its data are
small sets of the same form: the first images of Debian's Fashion-MNIST if it is installed, or else
random ones; CIFAR's are made up.
"""

import gzip
import html.parser
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import REPOSITORY, environment, random_splits, save_npz
from pages import blocks, commands, installs, module_of, pages, parsed
from tfds_sets import CIFAR10_FEATURES, Custom, images, png, prepare, prepare_cifar10_like

pytestmark = pytest.mark.long

COPIED = ('kd_jax', 'configs', 'launch', 'benchmarks', 'docs', 'tests')
FASHION = Path('/usr/share/datasets/fashion-mnist')
TRAIN, TEST = 400, 100  # images; 20 labels a class must be left after validation images are carved
MINUTES = 10  # that a command may take


class Cifar100(Custom, skip_registration=True):
    """The set 'cifar100' of the version that TFDS has."""

    VERSION = tfds.core.Version('3.0.2')


def make_idx(directory):
    """The four files of MNIST's format, small."""
    splits = random_splits(train=TRAIN, test=TEST, size=28, classes=10)
    for part, source, count in (('train', splits.train, TRAIN), ('t10k', splits.test, TEST)):
        for kind, array, magic in (
            ('images-idx3', source.image, 2051),
            ('labels-idx1', source.label, 2049),
        ):
            array = np.asarray(array, np.uint8)
            known = FASHION / f'{part}-{kind}-ubyte.gz'
            if known.is_file():
                header = 16 if 'idx3' in kind else 8
                size = count * (784 if 'idx3' in kind else 1)
                with gzip.open(known) as file:
                    array = np.frombuffer(file.read(header + size)[header:], np.uint8)
            shape = (count, 28, 28) if 'idx3' in kind else (count,)
            data = np.array([magic, *shape], '>u4').tobytes() + array.reshape(shape).tobytes()
            (directory / f'{part}-{kind}-ubyte').write_bytes(data)


def make_cifar100(directory):
    rng = np.random.default_rng(0)
    features = {name: CIFAR10_FEATURES[name] for name in ('id', 'image')}
    features['label'] = tfds.features.ClassLabel(num_classes=100)
    splits = {}
    for split, count in (('train', TRAIN), ('test', TEST)):
        image, label = images(count, rng)
        splits[split] = [
            {'id': f'{split}_{k:05d}', 'image': png(one), 'label': int(10 * own + k % 10)}
            for k, (one, own) in enumerate(zip(image, label, strict=True))
        ]
    prepare(directory, features, splits, Cifar100)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    """A copy of the repository with data sets; its `.venv/bin` is the interpreter of the tests."""
    root = tmp_path_factory.mktemp('docs') / 'kd_jax'
    root.mkdir()
    leave = shutil.ignore_patterns('__pycache__', '_build', 'golden')
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, root / name, ignore=leave)
    for path in REPOSITORY.iterdir():
        if path.is_file() and path.suffix in ('.md', '.txt', '.toml'):
            shutil.copy(path, root)
    (root / '.venv/bin').mkdir(parents=True)
    for name in ('python', 'python3'):
        script = root / '.venv/bin' / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        script.chmod(0o755)
    (root / 'DIR').mkdir()
    make_idx(root / 'DIR')
    prepare_cifar10_like(root / 'DIR', TRAIN, TEST)
    make_cifar100(root / 'DIR')
    save_npz(
        root / 'my_images.npz', random_splits(train=TRAIN, val=50, test=TEST, size=28, classes=10)
    )
    return root


def overrides(module, arguments):
    """What makes a command of a study short."""
    values = parsed(module, arguments)
    config, said = values.config, ' '.join(arguments)
    # Others go on from the first run, all seeds of whose student are evaluated together.
    first = '--config=configs/digits.py' in arguments and '--workdir' not in said
    given = [] if first else ['--config.seeds=(0,)']
    for name, run in config.runs.items():
        given += [f'--config.runs.{name}.epochs=1.', f'--config.runs.{name}.eval_every=1.']
        if (first and name != 'student') or (not first and 'seeds' in said):
            given.append(f'--config.runs.{name}.seeds=(0,)')
        if run.optim.warmup_epochs:
            given.append(f'--config.runs.{name}.optim.warmup_epochs=0.')
        if not first and 'teacher.init=' not in said:
            given.append(f'--config.runs.{name}.model.name=cnn')
    if config.data.source in ('idx', 'tfds') and 'data.source' not in said:
        given.append('--config.data.path=DIR')
    if config.profile:
        given.append('--config.profile=(4,8)')
    if module == 'kd_jax.search':
        given += ['--trials=2', '--together=2']
    if '--workdir=runs/two_processes' in arguments:
        given.append('--only=alone')
    return given


def shortened(command):
    """The command as it is run here; the shell reads the rest of it as it stands."""
    module, arguments = module_of(command)
    if 'cloud_tpu.sh' in command:
        return re.sub(r'(--zone=\S+)', r'\1 --dry-run', command)
    if module in ('kd_jax.main', 'kd_jax.search'):
        given = overrides(module, arguments)
        names = {word.partition('=')[0] for word in given}
        words = [word for word in shlex.split(command) if word.partition('=')[0] not in names]
        return shlex.join(words + given)  # a tuple that is given twice would be both
    if module == 'pytest':
        small = next(Path('tests').rglob('test_spread.py'))
        return f'{command} -n 0 -p no:cacheprovider {small}'
    if 'docs/tables.py' in command:
        return f'{command} methods losses augment'  # the zoo's takes minutes
    return command


def run(line, directory, variables):
    """A command line in bash, as a user's."""
    return subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', line],
        cwd=directory,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60 * MINUTES,
        check=False,
    )


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
def test_the_commands_of_every_page_run_in_their_order(copy, monkeypatch):
    monkeypatch.chdir(copy)  # where configs are read
    path = f'{copy}/.venv/bin:' + environment()['PATH']
    own = environment(
        PATH=path, PYTHON=f'{copy}/.venv/bin/python', JAX_DISABLE_MOST_OPTIMIZATIONS='0'
    )
    begin, ran = time.monotonic(), 0
    for page in pages():
        for block in blocks(page):
            name = re.match(r'# (\w+\.py)\n', block.text)
            if block.language == 'python' and name:
                (copy / name[1]).write_text(block.text)
            elif block.language == 'python' and block.text.startswith('import'):
                exec(compile(block.text, block.place, 'exec'), {})
            if block.language != 'bash' or block.reason:
                continue
            for command in commands(block.text):
                if installs(command):
                    continue
                line = shortened(command)
                done = run(line, copy, own)
                print(f'{time.monotonic() - begin:6.0f} s  {block.place}  {command[:110]}')
                assert done.returncode == 0, (
                    f'{block.place}: {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
                )
                ran += 1
    assert ran > 25
    assert (copy / 'runs/digits/curves.png').is_file()
    assert (copy / 'runs/fashion_mnist-search/search.md').is_file()
    assert list((copy / 'runs/profiled').rglob('perfetto_trace.json.gz'))


class Page(html.parser.HTMLParser):
    """The links and the anchors of an HTML file."""

    def __init__(self, path):
        super().__init__()
        self.links, self.anchors, self.tables = [], set(), 0
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors.update(given[key] for key in ('id', 'name') if given.get(key))
        self.links += [given[key] for key in ('href', 'src') if given.get(key)]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The built site; warnings are errors."""
    if not all(
        importlib.util.find_spec(name)
        for name in ('sphinx', 'myst_parser', 'furo', 'sphinx_copybutton')
    ):
        pytest.skip('needs requirements-docs.txt')
    out = tmp_path_factory.mktemp('site')
    flags = ['-W', '--keep-going', '-q', '-b', 'html', '-d', str(out / 'doctrees')]
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', *flags, 'docs', str(out / 'html')],
        cwd=REPOSITORY, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out / 'html'


def test_every_link_of_the_site_leads_somewhere_and_nothing_is_fetched_from_elsewhere(site):
    read = {path: Page(path) for path in site.rglob('*.html')}
    assert len(read) > 25
    for path, page in read.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link.startswith('//'):
                assert parts.scheme in ('https', 'mailto', 'data'), f'{path.name}: {link}'
                continue
            target = (
                (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            )
            assert target.exists(), f'{path.relative_to(site)}: {link}'
            if parts.fragment and target in read:
                anchor = urllib.parse.unquote(parts.fragment)
                assert anchor in read[target].anchors, f'{path.relative_to(site)}: {link}'
        text = path.read_text(encoding='utf-8')
        fetched = re.findall(
            r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+', text
        )
        assert not fetched, f'{path.relative_to(site)}: {fetched}'
