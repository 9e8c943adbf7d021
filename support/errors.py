"""The exception for invalid input, and helpers for one-line messages."""

import re
from collections.abc import Sequence


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


def printable(name: str) -> str:
    """Return the name with characters that are not printable escaped."""
    return name if name.isprintable() else ascii(name)


def reason(error: Exception) -> str:
    """Return the first line of an error's message, without the file name and TensorFlow's graph node."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    line = (str(text).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} *", "", line)


def first_names(names: Sequence[str], lead: str = ", first ", most: int = 3) -> str:
    """Return the first few names, to follow a count: ", first a.jpg, b.jpg"; "" if there are none."""
    return lead + ", ".join(map(printable, names[:most])) if names else ""
