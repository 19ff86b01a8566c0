"""How processes reach each other: where credentials, limits and the address of every gRPC server and channel come from.

Owns: the layout of a `--tls-dir`, certificates, reading them anew when they change, and why a connection was refused.
Does not own: any service, message or retry. Nobody else calls gRPC's constructors of channels, ports or credentials.
Read `tls.py` first (no gRPC in it), then `transport.py`; `certificates.py` makes what `tls.py` reads.
"""
