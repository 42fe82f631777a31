"""The real caption job, but for one source that kills the process like a broken decoder."""

import os
import signal

from curation import jobs
from curation.child import Job

_REAL = jobs.JOBS["caption"]


def _run(setup, models, arguments):
    for member in arguments["members"]:
        if "deadly" in member["path"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        _REAL.run(setup, models, {**arguments, "members": [member]})


JOBS = {"caption": Job(_REAL.load, _run)}
