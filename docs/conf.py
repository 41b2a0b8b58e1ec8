"""Sphinx: ``make docs`` builds the pages of this folder and the reference of the API."""

import mlic_fast

project = "mlic_fast"
version = release = mlic_fast.__version__
author = copyright = "the authors of mlic_fast"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["benchmarks.in.md"]
html_theme = "furo"
default_role = "code"
nitpicky = False

# Links to headings, and to files of the repository beside these pages.
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing"]

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"  # a codec is made by load
autodoc_typehints = "signature"
autodoc_type_aliases = {"Output": "mlic_fast.codec.Output"}
