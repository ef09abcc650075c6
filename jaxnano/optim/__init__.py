"""Optimizers: ordered chains of optax transforms, one chain per group of parameters."""
