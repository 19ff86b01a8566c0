"""The control plane in the simulator: real meta-roots, coordinators and clients in one thread and virtual time.

Owns: virtual time for asyncio (`host`), a network for gRPC stubs (`transport`), the processes (`node`, `client`), the
schedule (`world`), what must hold (`checker`), planted bugs (`mutants`). Does not own: any code of the product: it runs
as it is. Read `world` first.
"""
