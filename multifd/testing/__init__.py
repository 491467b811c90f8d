"""The conformance kit: proves that a method keeps the contract of `multifd.method`.

``pytest --pyargs multifd.testing --multifd-method NAME[:options]`` runs it with no file to write; a
plugin's own tests say ``from multifd.testing.suite import *`` and ``METHODS = ["NAME"]``. It needs
``multifd[test]``.

Importing this package imports nothing else: its pytest plugin is loaded in every pytest run.
"""
