"""What a network does to its images before the model sees them."""

import jax.numpy as jnp
import numpy as np

from kd_jax.networks import Network

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)


def test_resizing_and_colours_belong_to_the_network_and_leave_its_own_shape_alone():
    pixels = jnp.float32(np.random.default_rng(0).uniform(0, 255, (2, 6, 8, 3)))
    same = Network(None, MEAN, STD, (6, 8, 3)).normalize(pixels)
    np.testing.assert_array_equal(same, Network(None, MEAN, STD).normalize(pixels))
    np.testing.assert_allclose(same, (np.float64(pixels) / 255 - MEAN) / STD, atol=1e-5)
    double = Network(None, (0.0,) * 3, (1.0,) * 3, (12, 16, 3)).normalize(pixels)
    assert double.shape == (2, 12, 16, 3)
    np.testing.assert_allclose(double.mean((1, 2)), pixels.mean((1, 2)) / 255, rtol=0.05)
    # bilinear keeps a ramp; pixel centres at i + 1/2
    ramp = jnp.tile(jnp.arange(8.0)[None, None, :, None], (1, 6, 1, 1))
    wide = 255 * Network(None, (0.0,), (1.0,), (6, 16, 1)).normalize(ramp)
    np.testing.assert_allclose(
        wide[0, 0, 1:-1, 0], (np.arange(16) + 0.5)[1:-1] / 2 - 0.5, atol=1e-5
    )
