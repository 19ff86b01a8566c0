"""`nokv version`."""

from __future__ import annotations

import platform
import sys
from importlib import metadata

import click

from nokv.cli.output import emit, output_option

__all__ = ["nokv_version", "version"]


def nokv_version() -> str:
    import nokv

    found = getattr(nokv, "__version__", None)
    if isinstance(found, str):
        return found
    try:
        return metadata.version("nokv")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.command()
@output_option
def version(output: str) -> None:
    """Versions of NoKV and what it runs on."""
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
        "nokv": nokv_version(),
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
