"""Which stages of the models of the table losses on features compare."""

from small_models import traced

from kd_jax import models
from kd_jax.objectives import matching

LADDERS = {
    'resnet20': '123',
    'wrn_40_2': '123',
    'cifar_shufflenet_v2': '123',
    'cifar_resnet50': '1234',
}
LADDERS |= {'cifar_vgg13': '1235', 'cifar_mobilenet_v2_x0.5': '2357'}


def real(name):
    return traced(models.build(name, 10).clone(fast=False), (2, 32, 32, 3))[0]


def test_ladders_are_paired_from_the_deepest_up():
    for name, stages in LADDERS.items():
        found = real(name).features
        for ordered in (found, dict(reversed(found.items()))):
            assert matching.ladder(ordered) == [f'stage{k}' for k in stages]

    def numbers(student, teacher):
        return [(int(a[5:]), int(b[5:])) for a, b in matching.pairs(real(student), real(teacher))]

    assert numbers('resnet20', 'wrn_40_2') == [(1, 1), (2, 2), (3, 3)]
    assert numbers('cifar_mobilenet_v2_x0.5', 'cifar_vgg13') == [(2, 1), (3, 2), (5, 3), (7, 5)]
    assert numbers('cifar_shufflenet_v2', 'cifar_resnet50') == [(1, 2), (2, 3), (3, 4)]
    assert numbers('cifar_mobilenet_v2_x0.5', 'resnet20') == [(3, 1), (5, 2), (7, 3)]
