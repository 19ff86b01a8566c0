"""The `nokv` command: click groups that load their subcommands lazily, the local cluster launcher, the demo.

Owns: argument parsing, output formats, exit codes, the wiring of servers into processes, the processes of a local
cluster. Does not own: any behaviour of the engine, the planes or the migration. A leaf: nothing imports it. Read
`main.py` first.
"""
