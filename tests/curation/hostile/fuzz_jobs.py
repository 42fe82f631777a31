"""What the child of the fuzz test runs: one source decoded to its end."""

from curation.child import Job
from curation.decode import UnreadableSourceError, open_source


def _run(setup, models, arguments):
    try:
        reader = open_source(arguments["path"], kind="video", fps=24.0)
    except UnreadableSourceError:
        return "unreadable"
    try:
        for count, frame in enumerate(reader.frames()):
            assert frame.end_tick > frame.first_tick
            if count < 3:
                frame.picture.rgb(32, 48)
            if count > 5000:
                return "damaged"
        return "whole" if not reader.ending().damages else "damaged"
    except UnreadableSourceError:
        return "unreadable"
    finally:
        reader.close()


JOBS = {"decode": Job(lambda setup: None, _run)}
