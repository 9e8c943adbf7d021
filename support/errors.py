"""Errors that a user can mend, and how they become one line; open it where a message reads badly."""

import re
from collections.abc import Sequence


class InputError(ValueError):
    """What a user gave cannot be used: one line that names the thing and the mend."""


def printable(name: str) -> str:
    """Returns the name as any terminal can print it on one line."""
    return name if name.isprintable() else ascii(name)


def reason(error: Exception) -> str:
    """Returns the first line of what went wrong, without the path and the node of a graph that errors have in them."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    line = (str(text).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*?\}\} *", "", line)


def first_names(names: Sequence[str], lead: str = ", first ", most: int = 3) -> str:
    """Return the first few names, to follow a count: ", first a.jpg, b.jpg"; "" if there are none."""
    return lead + ", ".join(map(printable, names[:most])) if names else ""
