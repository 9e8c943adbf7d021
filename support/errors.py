"""Errors that a user can mend, and how they become one line; open it where a message reads badly."""


class InputError(ValueError):
    """What a user gave cannot be used: one line that names the thing and the mend."""


def printable(name: str) -> str:
    """Returns the name as any terminal can print it on one line."""
    return name if name.isprintable() else ascii(name)


def reason(error: Exception) -> str:
    """Returns the first line of what went wrong."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or error
    return (str(text) or type(error).__name__).splitlines()[0]
