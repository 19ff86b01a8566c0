"""The interactive shell: completion, highlighting, one grammar for keys and values. Read `main.py` first."""
