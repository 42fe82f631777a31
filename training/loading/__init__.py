"""What lies between a plan and micro-batches in memory; `training.loader` is the door.

sample_sets.py    which bytes each sample of a plan is    threads.py         readers, the maker, and who wakes whom
set_folders.py    where sets and shards lie               lane_reader.py     one lane's reads and rows, in the plan's order
shard_files.py    byte ranges of files                    read_program.py    what each row brings in, uses and lets go
object_store.py   byte ranges of stores                   read_ahead.py      how far ahead of the trainer

direct_read.py    samples into their places               replacement.py     what takes a damaged clip's place
sample_kernel.py  reading and checking, compiled          replaced_share.py  how many may be replaced
member_checks.py  one sample in words                     lane_batch.py      what is handed over
sample_layout.py  where the parts of a sample go          batch_memory.py    arrays, recycled or page-locked
clip_arrays.py    a clip's arrays from bytes              memory_meter.py    what is taken
checksum.py       crc32                                   teacher_grid.py    stored features on another grid
"""
