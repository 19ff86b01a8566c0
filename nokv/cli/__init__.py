"""The `nokv` command: click groups that load their subcommands lazily.

Owns: argument parsing, output formats, exit codes. Does not own: any behaviour. Read `main.py` first.
"""
