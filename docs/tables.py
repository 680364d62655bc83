"""Renews the tables of the documentation that follow from the code:

    python docs/tables.py            # writes them into their pages
    python docs/tables.py --check    # says which are out of date; exit status 1 if any is
    python docs/tables.py --check methods losses

Each stands between two comments of its page, `<!-- NAME -->` and `<!-- /NAME -->`. The zoo's takes
the longest: it traces every network.
"""

import argparse
import ast
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from ml_collections import ConfigDict  # noqa: E402

from configs import fashion_mnist, methods  # noqa: E402
from kd_jax import config, fields, markdown, models, objectives, zoo  # noqa: E402
from kd_jax.data import Settings as DataSettings  # noqa: E402
from kd_jax.data import augment  # noqa: E402
from kd_jax.models.common import Classifier  # noqa: E402
from kd_jax.objectives.matching import FeatureLoss  # noqa: E402
from kd_jax.objectives.responses import LogitLoss  # noqa: E402
from kd_jax.optim import Settings as OptimSettings  # noqa: E402

# What a loss cites beside its own formula.
NOT_A_SOURCE = {'cross_entropy': 'that of label smoothing'}
FIELD_HEAD = ('field', 'default', 'allowed', 'meaning')


def comments(cls: type) -> dict[str, str]:
    """Field -> the comment beside it, or above it, of a class and of those that it is made from."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith('kd_jax'):
            found |= _comments_in(textwrap.dedent(inspect.getsource(base)))
    return found


def _comments_in(source: str) -> dict[str, str]:
    lines, beside, alone = source.splitlines(), {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            (alone if lines[token.start[0] - 1].lstrip().startswith('#') else beside)[
                token.start[0]
            ] = token.string
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            parts = [alone[n] for n in range(first, node.lineno)]
            parts += [beside[n] for n in range(node.lineno, node.end_lineno + 1) if n in beside]
            text = ' '.join(part.lstrip('# ').rstrip() for part in parts)
            found[node.target.id] = re.sub(r'\s*\b(noqa|fmt): .*', '', text)
    return found


def plain(text: str) -> str:
    """Text in which Markdown finds nothing to interpret but code."""
    return re.sub(r'([<>*|])', r'\\\1', text)


def code(value: Any) -> str:
    text = repr(value).replace('|', '\\|')
    return f'`{text}`'


def rows_of(cls: type, but: Iterable[str] = ()) -> list[tuple[str, ...]]:
    """(field, default, allowed, meaning) of a record's own fields."""
    said, rows = comments(cls), []
    for name, of in fields.own(cls, but).items():
        default, words = code(of.default), of.metadata['limit'].words
        if of.metadata['limit'] is config.FAMILY:
            default, words = "the model's", words_of_models(name)
        meaning = said.get(name, '') + ('; a sweep may vary it' if of.metadata['sweep'] else '')
        rows.append((f'`{name}`', default, plain(words), plain(meaning.strip('; '))))
    return rows


def words_of_models(name: str) -> str:
    """What the families that have a field allow there."""
    families = dict.fromkeys(make.func for make in models.MODELS.values())
    return next(
        fields.own(one)[name].metadata['limit'].words for one in families if name in fields.own(one)
    )


def record(*classes: type, but: type | None = None) -> str:
    """The fields of records, without those of `but`."""
    left_out = () if but is None else fields.own(but)
    return markdown.table(FIELD_HEAD, [row for cls in classes for row in rows_of(cls, left_out)])


def families() -> str:
    """Fields that some families have beside those of all models."""
    usual, rows = {*fields.own(config.Model), *fields.own(Classifier)} - {'aux'}, []
    for family in dict.fromkeys(make.func for make in models.MODELS.values()):
        names = [f'`{name}`' for name, make in models.MODELS.items() if make.func is family]
        for row in rows_of(family, usual):
            others = f'{names[0]} … {names[-1]}' if len(names) > 2 else ', '.join(names)
            rows.append((*row, others))
    return markdown.table((*FIELD_HEAD, 'networks'), rows)


def said_of(name: str) -> str:
    """The docstrings of a loss and of the functions that are called after it, on one line."""
    loss = objectives.OBJECTIVES[name]
    module = vars(sys.modules[loss.__module__])
    functions = [
        one for key, one in module.items() if key.startswith(name) and inspect.isfunction(one)
    ]
    return ' '.join(' '.join(inspect.getdoc(one) or '' for one in (loss, *functions)).split())


def source_of(name: str) -> str:
    """The paper of a loss, as its docstring names it."""
    who = r'([A-Z]\w+(?: et al\.| (?:and|&) [A-Z]\w+)? \d{4})'
    found = re.search(rf'{who}(?:, "[^"]+")?(?: \(|, )(?:(arXiv:[\d.]+)|([A-Z]+)\b)', said_of(name))
    if not found or name in NOT_A_SOURCE:
        return '—'
    paper, arxiv, venue = found.groups()
    paper = paper.replace('&', 'and')
    return (
        f'{paper}, [{arxiv}](https://arxiv.org/abs/{arxiv[6:]})' if arxiv else f'{paper}, {venue}'
    )


def needs(loss: type) -> str:
    """What a loss learns from."""
    asked = (
        (loss.needs_teacher and loss.needs_features, 'features'),
        (loss.needs_teacher and loss.needs_teacher_logits, 'logits'),
        (loss.needs_label, 'labels'),
        (loss.needs_heads, 'heads'),
    )
    return ', '.join(word for needed, word in asked if needed)


def losses() -> str:
    rows = []
    for name, loss in sorted(objectives.OBJECTIVES.items()):
        rows.append(
            (f'`{name}`', source_of(name), needs(loss), f'`{loss.__module__}.{loss.__name__}`')
        )
    return markdown.table(('loss', 'source', 'learns from', 'class'), rows)


def loss_fields() -> str:
    """The fields of each loss that are its own, not those of all on logits or on features."""
    rows, shared = [], {*fields.own(LogitLoss), *fields.own(FeatureLoss)}
    for name, loss in sorted(objectives.OBJECTIVES.items()):
        rows += [(f'`{name}`', *row) for row in rows_of(loss, shared)]
    return markdown.table(('loss', *FIELD_HEAD), rows)


def text_of(objective: Mapping[str, ConfigDict]) -> str:
    """`0.1 CE + 0.9 kl`, with the fields that differ from the loss's defaults."""
    parts = []
    for label, term in sorted(objective.items(), key=lambda item: item[0] != 'cross_entropy'):
        usual = objectives.defaults(term.loss)
        changed = [f'{field}={term[field]!r}' for field in usual if term[field] != usual[field]]
        changed = [one for one in changed if not one.startswith(('weight=', 'ramp_'))] + [
            'ramped up'
        ] * bool(term.ramp_epochs)
        weight = '' if term.weight == 1 else f'{term.weight:g} '
        name = 'CE' if label == 'cross_entropy' else f'`{label}`'
        parts.append(weight + name + (f' ({", ".join(changed)})' if changed else ''))
    return ' + '.join(parts)


def changes(run: ConfigDict, alone: ConfigDict) -> str:
    """What else differs from the student alone; numbers of epochs as shares of its own."""
    mine, usual = (_flat(one) for one in (run, alone))
    parts = []
    for field in mine:
        if mine[field] != usual[field]:
            epochs = field in ('epochs', 'snapshot_epochs')
            parts.append(
                f'`{field}` = {mine[field] / usual["epochs"]:g} × epochs'
                if epochs
                else f'`{field}` = {mine[field]!r}'
            )
    return '; '.join(parts)


def _flat(run: ConfigDict) -> dict[str, Any]:
    flat = {}
    for name, value in run.to_dict().items():
        if name not in ('objective', 'teachers'):
            inner = value if isinstance(value, dict) else {'': value}
            flat |= {f'{name}.{key}'.rstrip('.'): one for key, one in inner.items()}
    return flat


def methods_table() -> str:
    runs = {
        name: run.copy_and_resolve_references()
        for name, run in fashion_mnist.get_config('method=all').runs.items()
    }
    rows = []
    for name, method in methods.METHODS.items():
        besides = [
            f'first `{run}`: {text_of(runs[run].objective)}' for run in runs if owner(run) == name
        ]
        besides += filter(None, [changes(runs[name], runs['alone'])])
        teachers = ', '.join(f'`{teacher}`' for teacher in runs[name].teachers) or '—'
        rows.append(
            (
                f'`{name}`',
                method.source or '—',
                text_of(runs[name].objective),
                teachers,
                '; '.join(besides),
            )
        )
    return markdown.table(('method', 'paper', 'objective', 'teachers', 'besides'), rows)


def owner(run: str) -> str:
    """The method that a run beforehand, such as `ab_before`, belongs to; '' for others."""
    of = [
        name
        for name in methods.METHODS
        if run.startswith(f'{name}_') and run not in methods.METHODS
    ]
    return max(of, key=len, default='')


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    'study': ('configuration.md', lambda: record(config.Shared, config.Study)),
    'teachers': ('configuration.md', lambda: record(config.Imported)),
    'run': ('configuration.md', lambda: record(config.Run, config.Shared)),
    'model': ('configuration.md', lambda: record(config.Model)),
    'families': ('configuration.md', families),
    'optim': ('configuration.md', lambda: record(OptimSettings)),
    'data': ('configuration.md', lambda: record(DataSettings)),
    'augment': ('configuration.md', lambda: record(augment.Settings)),
    'loss': ('losses.md', lambda: record(objectives.Loss)),
    'logits': ('losses.md', lambda: record(LogitLoss, but=objectives.Loss)),
    'features': ('losses.md', lambda: record(FeatureLoss, but=objectives.Loss)),
    'losses': ('losses.md', losses),
    'loss-fields': ('losses.md', loss_fields),
    'methods': ('methods.md', methods_table),
    'zoo': ('zoo.md', zoo.table),
}


def renewed(text: str, name: str) -> str:
    """A page with the table `name` as it follows from the code."""
    begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(
            f'{TABLES[name][0]} has no place for a table; put {begin} and below it {end} into it'
        )
    return f'{before}{begin}\n\n{TABLES[name][1]()}\n\n{end}{after}'


def stale(names: Iterable[str], *, write: bool = False) -> list[str]:
    """Which of the tables are not as the code has them; with `write` they are renewed."""
    old = []
    for name in names:
        page = DOCS / TABLES[name][0]
        text = page.read_text(encoding='utf-8')
        new = renewed(text, name)
        if new != text:
            old.append(name)
            if write:
                page.write_text(new, encoding='utf-8')
    return old


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description='Renew the tables of the documentation that follow from the code.'
    )
    parser.add_argument(
        'names', nargs='*', help=f'some of {", ".join(TABLES)}; all of them if none is named'
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit status 1 if a table is out of date',
    )
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(TABLES)
    if unknown:
        parser.error(
            f'no table is called {", ".join(sorted(unknown))}; there are {", ".join(TABLES)}'
        )
    old = stale(options.names or TABLES, write=not options.check)
    for name in old:
        print(f'docs/{TABLES[name][0]}: {name} {"is out of date" if options.check else "renewed"}')
    if options.check and old:
        sys.exit('run python docs/tables.py')


if __name__ == '__main__':
    main()
