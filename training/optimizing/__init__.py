"""One update of the weights, its rate, and the averages behind it.

optimizer.py          the update as a whole             optimizer_config.py  its settings
update_rules.py       AdamW, in 8 bits, Muon            learning_rate.py     the rate as a function of the step
muon.py               torch's Muon on sharded weights   ema.py               averages of the weights
parameter_groups.py   what decays                       local_parts.py       a rank's part of each tensor
"""
