"""Compiled leaves: one idea a module, `x.pyx` with `x.pxd` (for Cython) and `x.pyi` (for people) beside it.

Owns: every loop that runs once a key, an entry or a byte. Does not own: policy, files, threads. Read `cursor.pxd`
first: it fixes how a key is laid out and how everything that can be walked is walked.
"""
