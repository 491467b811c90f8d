"""Sphinx: MyST pages, the API from docstrings, the command line from click. Nothing is fetched."""

from multifd import __version__

project = "multifd"
author = "the multifd authors"
copyright = "the multifd authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"

html_theme = "furo"
html_title = f"multifd {release}"
