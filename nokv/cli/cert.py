"""`nokv cert init | issue`: certificates for a cluster that has no authority of its own."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Any

import click

from nokv.cli.main import LazyGroup
from nokv.cli.output import emit, output_option
from nokv.rpc.certificates import CA_DAYS, IDENTITY_DAYS, Issued

__all__ = ["cert"]

COMMANDS = {
    "init": ("nokv.cli.cert:init", "Make a certificate authority in CA."),
    "issue": ("nokv.cli.cert:issue", "Make the identity CA/NAME, ready to be a --tls-dir."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def cert() -> None:
    """Certificates for --tls-dir. Copy CA/NAME to the machine that it is for; CA/ca.key stays where it is."""


def _text(payload: dict[str, Any]) -> str:
    hosts = f" for {', '.join(payload['hosts'])}" if payload["hosts"] else ""
    return f"{payload['directory']}: {payload['name']}{hosts}, valid until {payload['not_after']}"


def _emit(kind: str, issued: Issued, output: str) -> None:
    emit(kind, asdict(issued), output, _text)


@click.command()
@click.argument("ca", type=click.Path())
@click.option("--name", default="NoKV CA", show_default=True, help="The authority's common name.")
@click.option("--days", type=int, default=CA_DAYS, show_default=True, help="Valid for so long.")
@output_option
def init(ca: str, name: str, days: int, output: str) -> None:
    """Make a certificate authority in the directory CA. Refused if there is one."""
    from nokv.rpc.certificates import init_ca

    _emit("cert-init", init_ca(ca, name=name, days=days, now=datetime.datetime.now(datetime.UTC)), output)


@click.command()
@click.argument("ca", type=click.Path())
@click.argument("name")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="A name or address it serves at (repeatable).")
@click.option("--days", type=int, default=IDENTITY_DAYS, show_default=True, help="Valid for so long.")
@click.option("--renew", is_flag=True, help="Replace the certificate and key that are there.")
@output_option
def issue(ca: str, name: str, hosts: tuple[str, ...], days: int, renew: bool, output: str) -> None:
    """Make the identity NAME in CA/NAME: with --host for a server, without for a client.

    A server must have every name and address that others use for it. Running servers notice a renewed certificate.
    """
    from nokv.rpc.certificates import issue as make

    now = datetime.datetime.now(datetime.UTC)
    _emit("cert-issue", make(ca, name, hosts, days=days, renew=renew, now=now), output)
