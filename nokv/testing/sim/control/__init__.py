"""The control plane in the simulator: `world` draws a schedule, `node` runs the real servers, `checker` says what must hold.

It owns virtual time for asyncio (`host`) and a network for gRPC stubs (`transport`). Read `world` first.
"""
