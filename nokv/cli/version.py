"""`nokv version`."""

from __future__ import annotations

import platform
import sys

import click

import nokv
from nokv.cli.output import emit, output_option

__all__ = ["version"]


@click.command()
@output_option
def version(output: str) -> None:
    """Versions of NoKV and what it runs on."""
    from importlib import metadata

    packages = {}
    for name in (
        "zstandard",
        "grpcio",
        "protobuf",
        "click",
        "msgspec",
        "prometheus-client",
        "prompt-toolkit",
        "pygments",
    ):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "missing"
    payload = {
        "nokv": nokv.__version__,
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": packages,
    }
    emit(
        "version",
        payload,
        output,
        lambda p: "\n".join(
            [f"nokv      {p['nokv']}", f"python    {p['python']}", f"platform  {p['platform']}"]
            + [f"{name}  {found}" for name, found in p["packages"].items()]
        ),
    )
