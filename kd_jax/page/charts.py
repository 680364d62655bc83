"""The charts of the page as Vega-Lite: what is drawn of which column. Pure.

What page.js puts in: `$runs` the runs that are shown, `$colours` and `$shapes` theirs, `$ink`,
`$faint`, `$paper` and `$accent` colours of the theme.
"""

import dataclasses
from typing import Any

Columns = dict[str, list[Any]]
Chart = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Figure:
    """of: 'shown', the rows of the runs that are shown; 'all', of which those have `shown`; 'one',
    those of the run that is chosen.
    """

    name: str
    title: str
    chart: Chart
    columns: Columns
    of: str = 'shown'


COLOUR: Chart = {
    'field': 'run',
    'type': 'nominal',
    'scale': {'domain': '$runs', 'range': '$colours'},
    'legend': None,
}
SHAPE: Chart = {
    'field': 'run',
    'type': 'nominal',
    'scale': {'domain': '$runs', 'range': '$shapes'},
    'legend': None,
}
WIDE: Chart = {'width': 'container', 'height': 240}


def _axis(field: str, title: str, *, zero: bool = False, **more: Any) -> dict[str, Any]:
    scale = more.pop('scale', {})
    if scale.get('type') != 'log':  # which has none
        scale = {'zero': zero} | scale
    return {'field': field, 'type': 'quantitative', 'title': title, 'scale': scale, **more}


def _told(*fields: str, **titles: str) -> list[dict[str, Any]]:
    """What a tooltip says."""
    return [{'field': name, 'title': titles.get(name, name)} for name in fields]


def curves(heading: str, unit: str, *, points: bool) -> Chart:
    """The mean over seeds by epoch with its standard deviation. points: mark each."""
    title = f'{heading} ({unit})' if unit else heading
    mark = {'type': 'point', 'filled': True, 'size': 32, 'opacity': 1 if points else 0}
    x = _axis('epoch', 'epoch', axis={'tickCount': 6})
    told = _told('run', 'epoch', 'mean', 'low', 'high', 'n', n='seeds', mean=heading)
    return WIDE | {
        'encoding': {'x': x, 'color': COLOUR},
        'layer': [
            {
                'mark': {'type': 'area', 'opacity': 0.16},
                'encoding': {'y': _axis('low', title), 'y2': {'field': 'high'}},
            },
            {'mark': {'type': 'line', 'strokeWidth': 2}, 'encoding': {'y': _axis('mean', title)}},
            {
                'mark': mark,
                'encoding': {'y': _axis('mean', title), 'shape': SHAPE, 'tooltip': told},
            },
        ],
    }


def paired() -> Chart:
    """Each seed of a run against the same seed alone, with the line where they are equal."""
    ends = [{'op': op, 'field': 'value', 'as': op} for op in ('min', 'max')]
    fold = {'fold': ['alone', 'own'], 'as': ['key', 'value']}
    titles = {'x': 'alone, top-1 (%)', 'y': 'top-1 (%)'}
    return WIDE | {
        'layer': [
            {
                'transform': [fold, {'aggregate': ends}],
                'mark': {'type': 'rule', 'strokeDash': [4, 4], 'color': '$faint'},
                'encoding': {
                    'x': _axis('min', titles['x']),
                    'x2': {'field': 'max'},
                    'y': _axis('min', titles['y']),
                    'y2': {'field': 'max'},
                },
            },
            {
                'mark': {'type': 'point', 'filled': True, 'size': 70, 'opacity': 0.9},
                'encoding': {
                    'x': _axis('alone', titles['x']),
                    'y': _axis('own', titles['y']),
                    'color': COLOUR,
                    'shape': SHAPE,
                    'tooltip': _told('run', 'against', 'seed', 'own', 'alone', 'gain'),
                },
            },
        ],
    }


def differences() -> Chart:
    """What each seed gains, and the mean as a line."""
    x: Chart = {'field': 'run', 'type': 'nominal', 'title': None, 'sort': '$runs'}
    x |= {'axis': {'labelAngle': -20, 'labelLimit': 130}}
    y, told = 'points of test top-1', _told('run', 'against', 'seed', 'gain')
    return WIDE | {
        'encoding': {'x': x, 'color': COLOUR},
        'layer': [
            {
                'mark': {'type': 'rule', 'strokeDash': [4, 4], 'color': '$faint'},
                'encoding': {'y': {'datum': 0}, 'x': None, 'color': None},
            },
            {
                'mark': {'type': 'tick', 'thickness': 2, 'size': 44},
                'encoding': {'y': {'aggregate': 'mean', **_axis('gain', y, zero=True)}},
            },
            {
                'mark': {'type': 'point', 'filled': True, 'size': 50, 'opacity': 0.75},
                'encoding': {'y': _axis('gain', y, zero=True), 'shape': SHAPE, 'tooltip': told},
            },
        ],
    }


def cost(heading: str, form: str, *, named: bool) -> Chart:
    """Accuracy against a cost; runs that are not shown stay as faint points.

    form: of the numbers at the axis, as d3 reads it. named: write the names of runs beside.
    """
    x = _axis('cost', heading, scale={'type': 'log', 'nice': False, 'padding': 30})
    x |= {'axis': {'tickCount': 5, 'format': form, 'labelOverlap': True}}
    colour = {'condition': {'test': 'datum.shown', **COLOUR}, 'value': '$faint'}
    told = _told('run', 'mean', 'low', 'high', 'n', 'cost', n='seeds', mean='top-1', cost=heading)
    y = 'test top-1 (%)'
    label = {'type': 'text', 'dy': -11, 'fontSize': 11, 'limit': 130}
    only = [{'filter': 'datum.shown' if named else 'false'}]
    return WIDE | {
        'encoding': {'x': x},
        'layer': [
            {
                'transform': [{'filter': 'datum.shown'}],
                'mark': {'type': 'rule', 'strokeWidth': 1.5},
                'encoding': {'y': _axis('low', y), 'y2': {'field': 'high'}, 'color': colour},
            },
            {
                'mark': {'type': 'point', 'filled': True, 'size': 60},
                'encoding': {'y': _axis('mean', y), 'color': colour, 'tooltip': told},
            },
            {
                'transform': only,
                'mark': label,
                'encoding': {
                    'y': _axis('high', y),
                    'text': {'field': 'run'},
                    'color': {'value': '$ink'},
                },
            },
        ],
    }


FEW = 5  # images, of which a line takes no notice
UNIT: Chart = {'scale': {'domain': [0, 1]}}


def reliability() -> Chart:
    """Accuracy by confidence; on the dashed line they are equal."""
    told = _told('run', 'confidence', 'accuracy', 'images')
    equal = [{'confidence': 0, 'accuracy': 0}, {'confidence': 1, 'accuracy': 1}]
    x, y = _axis('confidence', 'confidence', **UNIT), _axis('accuracy', 'accuracy', **UNIT)
    size = {
        'field': 'images',
        'type': 'quantitative',
        'scale': {'range': [20, 200]},
        'legend': None,
    }
    return WIDE | {
        'encoding': {'x': x, 'y': y},
        'layer': [
            {
                'data': {'values': equal},
                'mark': {'type': 'line', 'strokeDash': [4, 4], 'color': '$faint'},
            },
            {
                'transform': [{'filter': f'datum.images >= {FEW}'}],
                'mark': {'type': 'line', 'strokeWidth': 1.5, 'opacity': 0.7},
                'encoding': {'color': COLOUR},
            },
            {
                'mark': {'type': 'point', 'filled': True, 'opacity': 0.9},
                'encoding': {'color': COLOUR, 'shape': SHAPE, 'size': size, 'tooltip': told},
            },
        ],
    }


def confidence() -> Chart:
    """How many images have which confidence."""
    told = _told('run', 'low', 'high', 'images', 'share')
    y = _axis('share', 'share of the images (%)', zero=True)
    mark = {'type': 'line', 'interpolate': 'step', 'strokeWidth': 2}
    return WIDE | {
        'encoding': {'x': _axis('middle', 'confidence', **UNIT), 'y': y, 'color': COLOUR},
        'layer': [
            {'mark': mark},
            {
                'mark': {'type': 'point', 'filled': True, 'size': 32},
                'encoding': {'shape': SHAPE, 'tooltip': told},
            },
        ],
    }


def confusion(*, angle: int) -> Chart:
    """A row a label; the colour is the share of its images. angle: of the names of the classes."""
    axis: Chart = {'labelLimit': 90, 'labelOverlap': False, 'domain': False, 'ticks': False}
    x: Chart = {'field': 'predicted', 'type': 'nominal', 'sort': None, 'title': 'predicted'}
    x |= {'axis': axis | {'labelAngle': angle}}
    y = {'field': 'label', 'type': 'nominal', 'sort': None, 'title': 'label', 'axis': axis}
    share: Chart = {'field': 'share', 'type': 'quantitative', 'legend': None}
    share['scale'] = {'type': 'sqrt', 'domain': [0, 1], 'range': ['$paper', '$accent']}
    share['scale'] |= {'interpolate': 'rgb'}
    told = _told('label', 'predicted', 'images', 'share', share='share of the label')
    ink = {'condition': {'test': 'datum.share > 0.35', 'value': '$paper'}, 'value': '$ink'}
    return {
        'width': 'container',
        'height': 380,
        'encoding': {'x': x, 'y': y},
        'layer': [
            {'mark': {'type': 'rect', 'inset': 1}, 'encoding': {'color': share, 'tooltip': told}},
            {
                'transform': [{'filter': 'datum.images > 0'}],
                'mark': {'type': 'text', 'fontSize': 11},
                'encoding': {'text': {'field': 'images'}, 'color': ink},
            },
        ],
    }


def swept(field: str) -> Chart:
    """Every member and seed by a value, and the mean of each value."""
    x = {'field': 'value', 'type': 'ordinal', 'title': field, 'axis': {'labelAngle': 0}}
    y = 'validation top-1 (%)'
    colour = {'condition': {'test': 'datum.shown', **COLOUR}, 'value': '$faint'}
    return WIDE | {
        'encoding': {'x': x},
        'layer': [
            {
                'mark': {'type': 'point', 'filled': True, 'size': 30, 'opacity': 0.7},
                'encoding': {
                    'y': _axis('top1', y),
                    'color': colour,
                    'tooltip': _told('run', 'seed', 'value', 'top1', top1='validation top-1'),
                },
            },
            {
                'mark': {'type': 'line', 'strokeWidth': 2, 'color': '$ink', 'point': False},
                'encoding': {'y': {'aggregate': 'mean', **_axis('top1', y)}},
            },
        ],
    }
