"""Set the environment variables that Keras and TensorFlow read on import; the exception for invalid input."""

import contextlib
import os
import re
from collections.abc import Sequence

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


class InputError(ValueError):
    """Invalid input; the message states in one line what is wrong and how to fix it."""


def exhausted(error: BaseException) -> str:
    """Return what to do about an error that means too little memory or too few threads, or "" for any other error.

    TensorFlow's error is recognised by its name, because importing TensorFlow takes seconds.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError" or "bad_alloc" in str(error):
        return (
            "not enough memory: use a smaller --batch_size or, for a new run, a smaller --image_size, "
            "--num_encoder_channels or --num_gen_channels"
        )
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "the system allows no more threads, or memory for them: raise ulimit -u, or a container's pids limit"
    if isinstance(error, ImportError) and "failed to map segment" in str(error):
        return f"not enough memory to load TensorFlow: {error}"
    return ""


def printable(name) -> str:
    """Return a name or path with characters that are not printable escaped."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def reason(error: Exception) -> str:
    """Return the first line of an error's message, without the file name and TensorFlow's graph node."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    line = (str(text).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} *", "", line)


def first_names(names: Sequence[str], lead: str = ", first ", most: int = 3) -> str:
    """Return the first few names, to follow a count: ", first a.jpg, b.jpg"; "" if there are none."""
    return lead + ", ".join(map(printable, names[:most])) if names else ""
