"""The process environment that our own programs run in: nothing of the caller's may change what they do.

`clean` is for everything of ours, `for_pip` for pip alone, which needs the caller's proxies and certificates.
"""

from __future__ import annotations

import locale
import resource
from collections.abc import Mapping

# Three peers, two gateways and a few hundred client connections share one limit per process; below this a test fails
# for want of descriptors, not for a bug.
OPEN_FILES_MIN = 1024
# More is never needed, and some systems make every process pay for a higher limit.
OPEN_FILES_MAX = 65536

# OpenStack credentials, interpreter and tool settings, and settings of our own programs.
_DROPPED_PREFIXES = ("OS_", "PYTHON", "PYTEST_", "MYPY", "RUFF_", "RAFTREG_", "ZONEGW_", "LC_", "MAKE")
_DROPPED = {"LANG", "LANGUAGE", "MFLAGS", "VIRTUAL_ENV", "CDPATH", "BASH_ENV", "ENV"}
_PROXIES = {"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"}
# They would send packages elsewhere than into the environment, or add conditions that the lock doesn't know.
_PIP_DROPPED = {
    "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT", "PIP_REQUIREMENT", "PIP_EDITABLE",
    "PIP_NO_DEPS", "PIP_DRY_RUN", "PIP_PYTHON", "PIP_REQUIRE_HASHES", "PIP_ONLY_BINARY", "PIP_NO_BINARY",
}  # fmt: skip


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what could change what our programs do; text is UTF-8 whatever the caller's locale says."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _DROPPED and name.lower() not in _PROXIES and not name.startswith(_DROPPED_PREFIXES)
    }
    return kept | {"PYTHONUTF8": "1", "LC_ALL": _utf8_locale()}


def for_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for pip: cleaned, but with the caller's proxies, certificates and package sources."""
    proxies = {name: value for name, value in environ.items() if name.lower() in _PROXIES}
    kept = {name: value for name, value in (clean(environ) | proxies).items() if name not in _PIP_DROPPED}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def raise_open_files_limit() -> int:
    """Raise the soft limit of open files (as root the hard one too) as far as useful, and return what it now is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit, ceiling in _limits_to_try(soft, hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, ceiling))
        except (ValueError, OSError):
            continue
        break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES_MAX if soft == resource.RLIM_INFINITY else soft


def open_files_advice(limit: int) -> str:
    """What to tell a person whose limit of open files is too low and can't be raised by us."""
    return (
        f"Only {limit} files may be open at once (ulimit -n) and the hard limit forbids more; {OPEN_FILES_MIN} are "
        f"needed. Raise it, then run make again in a new login:\n"
        f"  Linux:  echo '* - nofile {OPEN_FILES_MAX}' | sudo tee /etc/security/limits.d/nofile.conf\n"
        f"  macOS:  sudo launchctl limit maxfiles {OPEN_FILES_MAX} {OPEN_FILES_MAX}"
    )


def _limits_to_try(soft: int, hard: int) -> list[tuple[int, int]]:
    """(soft, hard) pairs, best first. Raising the hard limit needs privileges; macOS refuses what its kernel can't."""
    infinity = resource.RLIM_INFINITY
    if soft == infinity or soft >= OPEN_FILES_MAX:
        return []
    wanted = [OPEN_FILES_MAX, 10240, 4096, OPEN_FILES_MIN]
    within = [(n, hard) for n in [*wanted, hard] if n != infinity and (hard == infinity or n <= hard) and n > soft]
    beyond = [(n, n) for n in wanted if hard != infinity and hard < OPEN_FILES_MIN <= n]
    return beyond + sorted(within, reverse=True)


def _utf8_locale() -> str:
    """A UTF-8 locale that this system has; "C" if it has none (PYTHONUTF8 then does the work)."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        for name in ("C.UTF-8", "C.utf8", "en_US.UTF-8"):
            try:
                locale.setlocale(locale.LC_CTYPE, name)
            except locale.Error:
                continue
            return name
        return "C"
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
