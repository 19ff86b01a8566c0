"""Faces of other libraries over our engine. Each module names what it does not offer and raises NotSupported for it.

Owns nothing on disk: a directory made through a face is an ordinary NoKV directory, not one of the other library's.
Read first: plyvel/database.py.
"""
