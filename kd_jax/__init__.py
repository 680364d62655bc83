"""Knowledge distillation of image classifiers in JAX and Flax."""
