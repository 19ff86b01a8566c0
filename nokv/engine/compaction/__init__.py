"""Leveled compaction: a pure picker and the step that runs what it picked. Read `picker.py` first."""
