"""The cluster client: route cache, batching stream, retries by region error, deadlines; sync and asyncio.

Owns: routes it has seen. Does not own: any truth. Read `client.py` first.
"""
