"""How a run is started, stopped, watched, and started again.

launch.py       ranks as processes of one machine        run_control.py     what a run's loop asks after each step
ray_launch.py   ranks as actors of a Ray cluster         stop_signals.py    SIGTERM and SIGINT, noted
job_paths.py    paths under a Ray job                    heartbeats.py      where each rank is
meeting.py      where ranks meet                         watchdog.py        who hangs, and with which stack
spare_ranks.py  ranks that the lanes cannot use          rank_errors.py     what a rank says before it meets others
restarts.py     what is started again, and how often     run_lock.py        one run at a time in a folder

nonfinite.py         a loss or gradient that is not finite: stop or skip
nonfinite_dump.py    its clips, weights and draws on disk
nonfinite_replay.py  the same step once more
batch_files.py       a micro-batch as files
"""
