"""``python -m multifd`` is the command line."""

from multifd.cli import main

main()
