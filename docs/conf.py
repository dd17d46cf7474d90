"""How the documentation is built: `python3.11 dev.py docs`. Nothing here needs the network."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the latter for `tests.catalogue`

project = "trio_rpc"
author = "trio_rpc contributors"
project_copyright = "trio_rpc contributors"
release = version = "0.1.0"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinxcontrib_trio",
    "sphinx_copybutton",
    "myst_parser",
    "fields_table",
    "settings_table",
    "catalogue_table",
]
exclude_patterns = ["_build", "_ext", "measured"]  # what is measured is included where it is explained

html_theme = "furo"
html_title = "trio_rpc"
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False

# A reference that leads nowhere is an error, except into other projects: without the network their inventories are
# not at hand.
nitpicky = True
FOREIGN = [
    "asyncio",
    "attr",
    "attrs",
    "cattrs",
    "collections",
    "contextlib",
    "enum",
    "inspect",
    "os",
    "ssl",
    "trio",
    "types",
    "typing",
]
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(FOREIGN)})(\..*)?"),
    (r"py:(class|data|obj)", r".*\b[A-Z]\w{0,2}(_co|_contra)?"),  # type variables and ParamSpecs: T, P, R, T_co
    (r"py:class", r"trio_rpc\.(.*\.)?_\w+\..*"),  # private types of constructors that are not for users
    (r"py:exc", r"(ValueError|TypeError|LookupError|OSError|RuntimeError|BaseException|Exception|KeyError)"),
]
