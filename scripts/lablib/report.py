"""What the lab tells its user while it works: one line per event, on standard error."""

import sys


def say(message: str) -> None:
    """Print a line of progress."""
    print(f"lab: {message}", file=sys.stderr, flush=True)
