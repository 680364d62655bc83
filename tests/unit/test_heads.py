"""Auxiliary heads: their place in the models, and the average of their predictions."""

import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import image_of, leave_the_rest_alone, random_variables, shapes_of

from kd_jax.errors import UserError
from kd_jax.models import build

K = 5


def test_heads_leave_the_rest_of_the_model_alone_and_predict_their_mean_probabilities():
    leave_the_rest_alone('resnet8', (4, 8, 8, 3))


def test_gradients_reach_every_parameter_of_the_heads():
    model = build('resnet8', K, heads=(1, 2)).clone(fast=False)
    variables, image = random_variables(model, (4, 8, 8, 3)), image_of(4, 8, 8, 3)
    heads = {k: v for k, v in variables['params'].items() if k.startswith('head')}

    def loss(heads):
        params = variables['params'] | heads
        out, _ = model.apply(
            {**variables, 'params': params}, image, train=True, mutable=['batch_stats']
        )
        return sum(
            (head.logits * jnp.arange(20.0).reshape(4, 5)).sum() for head in out.heads.values()
        )

    gradients = flax.traverse_util.flatten_dict(jax.jit(jax.grad(loss))(heads), sep='/')
    assert {'head/kernel', 'head/bias'} < set(gradients) and len(heads) == 3
    assert all(np.abs(g).max() > 0 for g in gradients.values())


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
