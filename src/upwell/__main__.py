"""`python -m upwell`: the command line, also where its script is not on PATH."""

from upwell.app.cli import main

main()
