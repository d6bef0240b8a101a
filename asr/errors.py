"""How errors read for people: one line that begins with the thing it is about."""


def one_line(error: BaseException) -> str:
    """The message of an error; the system's own errors name their file last, here it comes first."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
