"""The two mistakes a user can make, told apart by exit code: a parameter is wrong, or the data is."""


class ParameterError(ValueError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another. Exit code 2."""


class DataError(ValueError):
    """A file is missing, unreadable, or does not hold what it should. Exit code 3."""
