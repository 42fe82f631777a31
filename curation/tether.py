"""`python -m curation.tether PARENT_PID COMMAND...` becomes COMMAND, which the kernel ends when the parent does, also when that is SIGKILLed.

Used for the Ray head of a command: `ray start --block` ends its own processes on SIGTERM, so a killed driver leaves no cluster behind.
"""

from __future__ import annotations

import os
import signal
import sys

from curation.child import die_with_parent

__all__ = ["main"]


def main() -> None:
    """Replace this process by the command."""
    die_with_parent(signal.SIGTERM, parent=int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
