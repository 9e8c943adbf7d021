"""The included models: their folders, 8-bit weights, and the distribution of z over real faces.

z of real faces is far from uniform, so z ~ U(-1, 1) decodes to smeared faces. z lies in (-1, 1); arctanh maps it to the
real line, where a normal distribution is fitted. It consists of a mean and a covariance and contains no face.
"""

import itertools
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import InputError, reason
from support.files import atomic_write
from support.images import hash_files

PRETRAINED = Path(__file__).parent
# folders by name: "aging" was trained with the recipe aging, "paper" with the recipe paper and --balance True
INCLUDED_MODELS = {"aging": PRETRAINED / "aging", "paper": PRETRAINED / "paper"}
DEFAULT_MODEL = "aging"
OLD_MODEL_NAMES = {"2017": "paper"}
FINGERPRINTS_FILE = "trained_on.npy"  # file of the fingerprints of the images that an included model was trained on
WEIGHTS_FILE = "weights.npz"  # file of the weights of an included model
REFERENCE_NAMES = {"kernel": "w", "bias": "b"}  # weight names of Keras and of the reference program
MAX_Z = 1 - 1e-6  # the largest |z| taken for arctanh, which is infinite at 1


class Distribution(NamedTuple):
    """The normal distribution of arctanh(z): mean float32 [Z], covariance float32 [Z, Z]."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, z: np.ndarray) -> "Distribution":
        """Fit the distribution of latent codes, float [N, Z] in (-1, 1). Raises InputError for fewer than two."""
        if len(z) < 2:
            raise InputError("the distribution of z cannot be fitted to one face: use two or more")
        unbounded = np.arctanh(np.clip(z.astype(np.float64), -MAX_Z, MAX_Z))
        covariance = np.atleast_2d(np.cov(unbounded, rowvar=False))
        return cls(unbounded.mean(axis=0).astype(np.float32), covariance.astype(np.float32))

    def sample(self, count: int, seed: int) -> np.ndarray:
        """Sample latent codes, float32 [count, Z] in (-1, 1); the first ones do not depend on the count."""
        values, vectors = np.linalg.eigh(self.covariance.astype(np.float64))
        spread = vectors * np.sqrt(np.maximum(values, 0))  # rounding leaves some eigenvalues a little below 0
        normal = np.random.default_rng(seed).standard_normal((count, len(values)))
        return np.tanh(self.mean + normal @ spread.T).astype(np.float32)


def included_model(name: str) -> Path:
    """Return the folder of an included model. Raises InputError if there is none of this name, or files are missing."""
    name = OLD_MODEL_NAMES.get(name, name)
    if name not in INCLUDED_MODELS:
        raise InputError(f"no included model is named {name}: use {' or '.join(INCLUDED_MODELS)}")
    folder = INCLUDED_MODELS[name]
    for part in ("config.json", WEIGHTS_FILE):
        if not (folder / part).is_file():
            raise InputError(f"{folder} has no {part}: install the program again")
    return folder


def is_included(folder: str | Path) -> bool:
    """Return whether a folder is, or is within, that of the included models, to which nothing may be written."""
    return Path(folder).resolve().is_relative_to(PRETRAINED.resolve())


def included_name(folder: Path) -> str | None:
    """Return the name of the included model in a folder, or None."""
    return next((name for name, path in INCLUDED_MODELS.items() if path == folder), None)


def is_trained_on(name: str, paths: Sequence[str]) -> np.ndarray:
    """Return which images an included model was trained on, by their content, bool [N]."""
    path = included_model(name) / FINGERPRINTS_FILE
    return np.isin(fingerprints(paths), np.load(path)) if path.exists() else np.zeros(len(paths), bool)


def fingerprints(paths: Sequence[str]) -> np.ndarray:
    """Return the first four bytes of the SHA-256 of each image, uint32 [N]."""
    return np.array([int(digest[:8] or "0", 16) for digest in hash_files(paths)], np.uint32)


def reference_name(variable) -> str:
    """Return a weight's name in the reference program's checkpoints: E_conv0/w for E_conv0/kernel."""
    layer, name = variable.path.split("/")[-2:]
    return f"{layer}/{REFERENCE_NAMES.get(name, name)}"


def quantize_weights(
    path: str | Path, networks: Sequence, bits: int = 8, distribution: Distribution | None = None
) -> None:
    """Write the weights of networks as a small .npz: float16 with 16 bits, or int8 with scales.

    A convolution has a scale per output channel. A fully connected layer has one per input, because G's inputs are z
    and hundreds of copies of the labels, whose weights are smaller. Biases stay float32. Keys are those of
    `reference_name`; the scales of an int8 array w are "w/scale". The distribution of z over real faces is stored as
    "z/mean" and "z/covariance".
    """
    from keras import layers  # slow to import, and the command line needs only the folders

    arrays = {f"z/{name}": values for name, values in distribution._asdict().items()} if distribution else {}
    for layer in itertools.chain.from_iterable(network.layers for network in networks):
        for variable in layer.weights:
            name, values = reference_name(variable), variable.numpy()
            if values.ndim > 1 and bits == 8:
                # kernels are [input, output], [height, width, output, input] or [height, width, input, output]
                scaled = 0 if values.ndim == 2 else 2 if isinstance(layer, layers.Conv2DTranspose) else 3
                others = tuple(axis for axis in range(values.ndim) if axis != scaled)
                scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, np.finfo(np.float32).tiny)
                arrays[f"{name}/scale"] = scale
                values = np.rint(values / scale).astype(np.int8)
            elif values.ndim > 1:
                values = values.astype(np.float16)
            arrays[name] = values
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def read_distribution(folder: Path) -> Distribution | None:
    """Return the distribution of z stored with the weights in the folder, or None if there is none."""
    if not (folder / WEIGHTS_FILE).is_file():
        return None
    with np.load(folder / WEIGHTS_FILE, allow_pickle=False) as arrays:
        names = [f"z/{name}" for name in Distribution._fields]
        return Distribution(*(arrays[name] for name in names)) if names[0] in arrays else None


def load_quantized(path: str | Path, networks: Sequence) -> None:
    """Load weights written by `quantize_weights`. Raises InputError, and changes nothing, for any others."""
    variables = [variable for network in networks for variable in network.weights]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = [reference_name(variable) for variable in variables]
            values = [arrays[name].astype(np.float32) * arrays.get(f"{name}/scale", 1) for name in names]
        if any(value.shape != variable.shape for value, variable in zip(values, variables, strict=True)):
            raise ValueError("weights of another network")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path} is not a complete set of weights, install the program again: {reason(error)}"
        ) from error
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
