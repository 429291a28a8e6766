"""The errors a person is meant to read.

Belongs here: the base class whose message names the fault and the remedy. Does not: errors of one part
only (they stand beside that part and derive from this one).
"""


class SmokeError(Exception):
    """A fault that a person can mend; the command line prints it without a stack trace and exits with 1.

    Args:
        message: what is wrong, naming the field, file, port or setting.
        remedy: what to do about it, or an empty string where nothing is known.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message if not remedy else f"{message}\n  -> {remedy}")
        self.message = message
        self.remedy = remedy
