"""The interactive shell: one language for bytes, completion, highlighting, over a directory or a cluster.

Owns: what is typed and what is shown. Does not own: data, routes, retries. Read `session.py` first (no terminal in it);
`grammar.py` and `verbs.py` are pure; only `terminal.py` knows a prompt, only `client.py` knows gRPC.
"""
