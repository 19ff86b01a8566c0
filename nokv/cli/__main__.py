"""`python -m nokv.cli` is `nokv`: what the launcher starts, so that it runs from a checkout as well as when installed."""

from nokv.cli.main import main

main()
