"""The one error that the lab shows to its user without a traceback."""


class LabError(Exception):
    """Something went wrong; the message says what, and what to do about it."""
