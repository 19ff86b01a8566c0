"""The manifest: a log of version edits plus an atomic CURRENT. Read `edit.py` first."""
