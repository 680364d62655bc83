"""Auxiliary heads of larger models than tests/unit has."""

import pytest
from small_models import gradients_reach_the_heads, leave_the_rest_alone


@pytest.mark.parametrize(
    ('name', 'shape'),
    [
        ('resnet8', (4, 8, 8, 3)),
        ('resnet14', (4, 8, 8, 3)),
        ('cifar_mobilenet_v2_x0.5', (4, 16, 16, 3)),
    ],
)
def test_heads_leave_the_rest_of_the_model_alone_and_predict_their_mean_probabilities(name, shape):
    leave_the_rest_alone(name, shape)


def test_gradients_reach_every_parameter_of_the_heads():
    gradients_reach_the_heads('resnet8', (4, 8, 8, 3))
