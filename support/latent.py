"""How z of real faces is distributed, and z of nobody drawn from that; open it where faces of random z are drawn.

z of real faces is far from uniform, so a face of z ~ U(-1, 1) looks like nobody who lives. z lies in (-1, 1); arctanh
takes it to all numbers, where a normal distribution is fitted. It keeps a mean and a covariance, and no face.
"""

from typing import NamedTuple

import numpy as np

from support.errors import InputError

EDGE = 1 - 1e-6  # the largest |z| taken for arctanh, which is infinite at 1


class Distribution(NamedTuple):
    """The normal distribution of arctanh(z): mean float32 [Z], covariance float32 [Z, Z]."""

    mean: np.ndarray
    covariance: np.ndarray


def fit(z: np.ndarray) -> Distribution:
    """Returns the distribution of latent codes, float [N, Z] in (-1, 1). Raises InputError for fewer than two."""
    if len(z) < 2:
        raise InputError("one face has no distribution of z: two at least are needed")
    unbounded = np.arctanh(np.clip(z.astype(np.float64), -EDGE, EDGE))
    covariance = np.atleast_2d(np.cov(unbounded, rowvar=False))
    return Distribution(unbounded.mean(axis=0).astype(np.float32), covariance.astype(np.float32))


def draw(distribution: Distribution | int, count: int, seed: int) -> np.ndarray:
    """Returns so many latent codes, float32 [count, Z] in (-1, 1); the first ones are the same whatever the count.

    Instead of a distribution Z may be given: they are drawn from the prior, U(-1, 1).
    """
    if isinstance(distribution, int):
        return np.random.default_rng(seed).uniform(-1, 1, (count, distribution)).astype(np.float32)
    values, vectors = np.linalg.eigh(distribution.covariance.astype(np.float64))
    spread = vectors * np.sqrt(np.maximum(values, 0))  # rounding leaves some eigenvalues a little below 0
    normal = np.random.default_rng(seed).standard_normal((count, len(values)))
    return np.tanh(distribution.mean + normal @ spread.T).astype(np.float32)
