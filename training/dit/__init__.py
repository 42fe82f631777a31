"""The network: a diffusion transformer of dual-stream, single-stream and decoder blocks.

model.py           the whole of it                   attention.py     softmax attention behind one seam
blocks.py          the three kinds of blocks         token_layout.py  how tokens lie in memory
context_embed.py   text and image tokens             rope.py          positions
initialization.py  starting weights                  routing.py       TREAD
"""
