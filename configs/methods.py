"""The methods of the published tables; they stand in `kd_jax.methods`."""

from kd_jax.methods import METHODS, Make, Method, add, add_all

__all__ = ['METHODS', 'Make', 'Method', 'add', 'add_all']
