"""How a peer verifies the registry's state: handed to consensus, which knows nothing of it."""

from __future__ import annotations

from raftreg.digests import StateChecks
from raftreg.state_scrub import Pass, checked_rows
from raftreg.state_validation import digest
from raftreg.tables import DIGEST_VERSION

STATE_CHECKS = StateChecks(version=DIGEST_VERSION, digest=digest, begin_pass=Pass, checked_rows=checked_rows)
