"""The cluster client: route cache, batching streams, retries by region error, deadlines; asyncio and synchronous.

Owns: routes it has seen. Does not own: any truth; a stale route costs a round trip, never a wrong answer, because every
request carries the region's epoch and the store checks it. Read `client.py` first; `routes.py` and `retry.py` are pure.
"""
