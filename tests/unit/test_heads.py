"""Auxiliary heads: their place in the models, and the average of their predictions."""

import re

import pytest
from small_models import gradients_reach_the_heads, leave_the_rest_alone, shapes_of

from kd_jax.errors import UserError
from kd_jax.models import build

K = 5


def test_heads_leave_the_rest_of_the_model_alone_and_predict_their_mean_probabilities():
    leave_the_rest_alone('cnn', (4, 8, 8, 3), (1,))


def test_gradients_reach_every_parameter_of_the_heads():
    gradients_reach_the_heads('cnn', (4, 8, 8, 3), (1,))


def test_a_head_at_a_stage_that_is_not_there_is_refused():
    for heads in ((3,), (1, 9)):
        message = (
            f'auxiliary head at stage {heads[-1]}: this model has 3 stages, the '
            'last of which feeds its own head'
        )
        with pytest.raises(UserError, match=re.escape(message)):
            shapes_of(build('resnet8', K, heads=heads))
    with pytest.raises(UserError, match='average_heads needs auxiliary heads'):
        shapes_of(build('resnet8', K, average_heads=True))
