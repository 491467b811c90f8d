"""``python -m multifd`` is the command line."""

from multifd.cli.main import main

main()
