"""The ways a run can end early, as the command line reports them."""


class BadInput(ValueError):
    """The user's input is wrong: one sentence saying what, where, and what would be right. Exit status 2."""

    def __str__(self) -> str:
        said, cause = super().__str__(), self.__cause__
        # Pyro raises what a traced program raises once more, with the shapes of the trace after it
        return str(cause) if isinstance(cause, BadInput) and said.startswith(str(cause)) else said


class FailedRun(RuntimeError):
    """The input was fine but the run could not go on (NaN, disk full): one sentence. Exit status 1."""


class Interrupted(RuntimeError):
    """Ctrl-C or a termination signal, after the checkpoint was written. Exit status 130."""
