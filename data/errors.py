"""The one way data can be wrong, as the command line reports it."""


class BadData(ValueError):
    """The user's data are wrong: one sentence saying what, where, and what would be right. Exit status 2."""
