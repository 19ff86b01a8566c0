"""`python -m nokv.cli` is `nokv`: what the launcher starts, so that it runs from a checkout too."""

from nokv.cli.main import main

main()
