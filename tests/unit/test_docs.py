"""The documentation: commands and configs are accepted, links lead somewhere, tables are current.

Nothing is trained here; test_docs_commands.py runs the commands.
"""

import ast
import importlib.util
import re
from pathlib import Path

import nbformat
import pytest
from helpers import REPOSITORY, folder_of_images
from pages import (
    DOCS,
    ROOT_PAGES,
    anchors,
    blocks,
    check_study,
    commands,
    installs,
    links,
    module_of,
    pages,
    parsed,
)

import kd_jax
from configs import common

MOST_LINES = 150  # of the README
PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {'', 'bash', 'diff', 'python'}


def shown(paths):
    return [str(path.relative_to(REPOSITORY)) for path in paths]


def test_every_page_is_reached_from_the_first_one():
    there = {path for path in DOCS.rglob('*.md') if '_build' not in path.parts}
    assert there | set(ROOT_PAGES) == set(PAGES)
    assert len(PAGES) == len(set(PAGES))


def test_the_readme_is_short():
    text = (REPOSITORY / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= MOST_LINES


def test_the_table_of_the_first_run_is_the_same_everywhere():
    readme, results = (
        [block.text for block in blocks(page) if block.text.startswith('run  ')]
        for page in (REPOSITORY / 'README.md', DOCS / 'results.md')
    )
    assert len(readme) == 1 and readme[0] == results[0]


def test_the_changelog_knows_the_version():
    version = kd_jax.__version__
    headings = re.findall(r'^## (\S+)', (REPOSITORY / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert headings[0] == 'Unreleased' and version in headings


@pytest.mark.parametrize('page', PAGES, ids=shown(PAGES))
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r'\w+:', link):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f'{link} is not there'
        if anchor:
            assert anchor in anchors(target), f'{link}: no heading of {target.name} is called so'


def test_blocks_say_what_they_are_and_commands_are_run_or_say_why_not():
    for block in BLOCKS:
        directive = block.language.startswith('{')
        assert directive or block.language in LANGUAGES, f'{block.place}: {block.language}'
        if block.language == 'bash':
            assert commands(block.text), f'{block.place} is empty'
        else:
            assert not block.reason, f'{block.place} is no block of commands'
            prompt = re.search(r'^(\$ |python3? -m |pip install )', block.text, re.MULTILINE)
            assert block.language == '{eval-rst}' or not prompt, (
                f'{block.place} has commands and is not marked bash'
            )


def test_tests_that_are_named_are_there():
    there = {path.name for path in (REPOSITORY / 'tests').rglob('*.py')}
    for page in set(PAGES) - {REPOSITORY / 'CONTRIBUTING.md'}:  # whose walks add some
        text = page.read_text(encoding='utf-8')
        assert set(re.findall(r'\btest_\w+\.py', text)) <= there, page
        named = re.findall(r'\btests/[\w/]+\.py', text)
        assert [path for path in named if not (REPOSITORY / path).is_file()] == [], page


def test_no_commands_stand_outside_of_blocks_of_their_own():
    for page in PAGES:
        text = re.sub(
            r'^```.*?^```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE
        )
        assert not re.search(r'^ {4}(python|pip|launch/|\w+=\S+ launch/)', text, re.MULTILINE), page


def test_the_requirements_that_are_installed_are_there():
    named = re.findall(
        r'-r (\S+\.txt)', '\n'.join(block.text for block in BLOCKS if block.language == 'bash')
    )
    assert {'requirements.txt', 'requirements-dev.txt', 'requirements-docs.txt'} <= set(named)
    assert [name for name in named if not (REPOSITORY / name).is_file()] == []


COMMANDS = [
    pytest.param(command, id=f'{block.place} {command[:60]}')
    for block in BLOCKS
    if block.language == 'bash'
    for command in commands(block.text)
    if not installs(command) and '[--' not in command
    if not block.reason or module_of(command)[0]
]


def data_files(directory):
    """Files of the recipes' configs, in `directory`."""
    for block in BLOCKS:
        name = re.match(r'# (\w+\.py)\n', block.text)
        if block.language == 'python' and name:
            (directory / name[1]).write_text(block.text)


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')  # in ml_collections
@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_is_accepted(command, tmp_path, monkeypatch):
    """Its program is there; its config with all overrides passes the checks before any step."""
    module, arguments = module_of(command)
    if not module:
        first = re.sub(r'^\w+=\S+ ', '', command).split()
        script = first[1] if first[0] == 'python' else first[0]
        assert (REPOSITORY / script).is_file(), f'{script} is not there'
    elif module.startswith(('kd_jax', 'benchmarks')):
        assert importlib.util.find_spec(module) is not None
    if module in ('kd_jax.main', 'kd_jax.search'):
        monkeypatch.chdir(REPOSITORY)
        data_files(tmp_path)
        arguments = [
            re.sub(r'^--config=(\w+\.py)$', rf'--config={tmp_path}/\1', word) for word in arguments
        ]
        images = folder_of_images()
        arguments = [word.replace('/path/to/images', images) for word in arguments]
        values = parsed(module, arguments)
        check_study(values.config, values.only)


def test_two_blocks_of_the_same_file_are_the_same_config():
    """The README and the guide show `my_study.py`; the commands between them need one of both."""
    texts = {}
    for block in BLOCKS:
        name = re.match(r'# (\w+\.py)\n', block.text)
        if block.language == 'python' and name:
            code = ast.dump(ast.parse(block.text))
            assert texts.setdefault(name[1], code) == code, block.place
    assert set(texts) == {'my_study.py', 'compare.py'}


SNIPPETS = [pytest.param(block, id=block.place) for block in BLOCKS if block.language == 'python']


@pytest.mark.parametrize('block', SNIPPETS)
def test_every_snippet_runs_and_makes_a_study(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = common.study()
    config.runs.teacher = common.run(config, 'resnet20')
    config.runs.student = common.run(config, 'resnet8', common.distillation())
    config.runs.student.teachers = ('teacher',)
    scope = {'common': common, 'config': config}
    exec(compile(block.text, block.place, 'exec'), scope)
    if 'get_config' in scope:
        config = scope['get_config']()
        assert {'teacher', 'alone'} <= set(config.runs)
    elif 'run' in scope:
        config.runs.snippet = scope['run']
    check_study(config.lock())


@pytest.fixture(scope='module')
def tables():
    spec = importlib.util.spec_from_file_location('docs_tables', DOCS / 'tables.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_that_follow_from_the_code_are_current(tables):
    """All but that of the zoo, which takes longer and has a test of its own."""
    assert tables.stale(set(tables.TABLES) - {'zoo'}) == [], 'run python docs/tables.py'


def test_every_table_has_its_place_and_nothing_is_left_empty(tables):
    for name, (page, _) in tables.TABLES.items():
        text = (DOCS / page).read_text(encoding='utf-8')
        assert text.count(f'<!-- {name} -->') == text.count(f'<!-- /{name} -->') == 1
        table = text.partition(f'<!-- {name} -->')[2].partition(f'<!-- /{name} -->')[0]
        head, _, *rows = (re.split(r'(?<!\\)\|', line)[1:-1] for line in table.strip().splitlines())
        assert rows and all(len(row) == len(head) for row in rows)
        if 'meaning' in table.partition('\n\n')[2].partition('\n')[0]:
            assert all(
                row[[cell.strip() for cell in head].index('meaning')].strip() for row in rows
            ), name


def test_a_stale_table_is_told_and_renewed(tables, tmp_path, monkeypatch, capsys):
    page = tables.TABLES['augment'][0]
    text = (DOCS / page).read_text(encoding='utf-8')
    (tmp_path / page).write_text(
        text.replace('Beta(mixup, mixup)', 'Gamma(mixup)'), encoding='utf-8'
    )
    monkeypatch.setattr(tables, 'DOCS', tmp_path)
    with pytest.raises(SystemExit) as stopped:
        tables.main(['--check', 'augment'])
    assert stopped.value.code == 'run python docs/tables.py'
    assert capsys.readouterr().out == f'docs/{page}: augment is out of date\n'
    tables.main(['augment'])
    assert (tmp_path / page).read_text(encoding='utf-8') == text
    tables.main(['--check', 'augment'])


def test_what_the_notebook_imports_is_there():
    notebook = nbformat.read(REPOSITORY / 'launch' / 'colab.ipynb', as_version=4)
    sources = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
    lines = re.findall(r'^(?:import|from) .+$', '\n'.join(sources), re.MULTILINE)
    assert 'import kd_jax as kd' in lines
    exec('\n'.join(lines), {})


@pytest.mark.parametrize(
    ('given', 'made'),
    [
        (['The `a`s of *x*, |y| and z_.'], ['The ``a``\\ s of \\*x\\*, \\|y\\| and z\\_.', '']),
        (
            ['x: `[B]`,', '  more', 'y, z: text'],
            ['- ``x``: ``[B]``,', '  more', '- ``y``, ``z``: text', ''],
        ),
        (['±`x`, (`y`).'], ['±\\ ``x``, (``y``).', '']),
        (['Text', '', '    a * `b`'], ['Text', '', '::', '', '    a * `b`', '']),
        (['They are', '  one', '  two', 'end'], ['They are', '', '- one', '- two', '', 'end', '']),
        (['Args:', '  x: `y`', ''], ['Args:', '  x: ``y``', '']),
    ],
    ids=['inline', 'items', 'beside', 'code', 'indented', 'section'],
)
def test_docstrings_become_restructured_text(given, made):
    spec = importlib.util.spec_from_file_location('docs_docstrings', Path(DOCS, 'docstrings.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.to_rst(given) == made
