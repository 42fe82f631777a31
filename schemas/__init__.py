"""What passes between the parts of Reelyard: tables, plan and shard formats, bucket grid, ids, config base, model shape.

Imports none of the other parts; importing it pulls in neither torch nor ray.
"""
