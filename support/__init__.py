"""Set the environment variables that Keras and TensorFlow read on import; import it before them."""

import contextlib
import os

# Otherwise the user's environment or ~/.keras/keras.json could set another backend, number type or axis order.
_PINNED = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,  # not a folder: no keras.json is found in it, and none is written
    "KERAS_NNX_ENABLED": None,
    "KERAS_MAX_EPOCHS": None,
    "KERAS_MAX_STEPS_PER_EPOCH": None,
}


def _set(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_user_environment = {name: os.environ.get(name) for name in _PINNED}
_set(_PINNED)
# TensorFlow disables oneDNN on CPUs without AVX-512 extensions: there a step would take 1.8 times as long
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# otherwise TensorFlow allocates all of a GPU's memory at once
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")


def restore_environment() -> None:
    """Restore the user's Keras variables, for child processes, and Keras' folder for downloads; call it after import.

    Keras reads the variables only when it is imported.
    """
    from keras.src.backend import config

    _set(_user_environment)
    if config.keras_home() == os.devnull:
        home = os.path.expanduser("~")  # noqa: PTH111, as Keras does, which also works without a home folder
        default = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")  # noqa: PTH118
        config._KERAS_DIR = _user_environment["KERAS_HOME"] or default
        with contextlib.suppress(OSError):  # a folder that does not exist would not be used
            os.makedirs(config._KERAS_DIR, exist_ok=True)  # noqa: PTH103
