"""Every evaluation has the precision that was asked."""

import jax
import jax.numpy as jnp
import pytest
from helpers import random_splits

from kd_jax import evaluation, trained
from kd_jax.parallel import Parallel


@pytest.mark.parametrize(
    ('precision', 'products'), [('float32', 'HIGHEST'), ('tf32', 'HIGH'), ('bfloat16', 'HIGHEST')]
)
def test_every_evaluation_and_prediction_has_the_products_that_were_asked(
    precision, products, monkeypatch
):
    """Whatever is compiled takes its precision from whoever asks: there is no default."""
    texts = []

    class Noting(Parallel):
        def compile(self, step, precision, **options):
            compiled = super().compile(step, precision, **options)

            def call(*arguments):
                texts.append(compiled.lower(*arguments).as_text())
                return compiled(*arguments)

            return call

    splits, parallel = random_splits(), Noting('jit', 1, fast=False)
    network = trained.build_network(
        {'name': 'cnn', 'width': 0.25}, splits.info, precision, fast=False
    )
    variables = jax.device_get(
        network.model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False)
    )
    evaluation.evaluate(network, variables, splits.val, parallel, precision)
    lines = [
        line
        for line in '\n'.join(texts).splitlines()
        if 'dot_general' in line or 'stablehlo.convolution' in line
    ]
    assert len(lines) >= 4
    assert all(
        f'precision = [{products}, {products}]' in line or line.count(f'precision {products}>') == 2
        for line in lines
    )
