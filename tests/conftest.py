"""What every test may rely on: the caller's environment changes nothing, and enough files may be open.

`make test` arranges this already; here it is arranged again for those who run pytest by hand.
"""

from __future__ import annotations

import os

import hypothesis

from ops.dev import environment

_CLEAN = environment.clean(os.environ)
for _name in set(os.environ) - set(_CLEAN):
    # pytest reads its own variables again later.
    if not _name.startswith("PYTEST_"):
        del os.environ[_name]
environment.raise_open_files_limit()

# Real disks and processes have no deadline that holds on a busy machine. A failing example prints what repeats it.
hypothesis.settings.register_profile("raftreg", deadline=None, print_blob=True, derandomize=False)
hypothesis.settings.load_profile("raftreg")
