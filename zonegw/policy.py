"""Who may do what: one table of actions, each with a rule, and the rules' few words.

A rule is terms joined by `and` and `or` (`and` binds closer): `anyone`, `nobody`, `admin`, `writer` (whose roles are
more than `reader`), `owner` (of the image's project), `shared` (of a project that the image is shared with),
`role:NAME`. Actions have the names that Glance's policy gives them. [policy] of zonegw.toml overrides single actions.
Whether an image exists for somebody at all is `visibility`'s question, and comes first.
"""

from collections.abc import Callable, Mapping
from typing import Any

from zonegw.errors import ConfigError, Forbidden
from zonegw.identity import Identity

Image = dict[str, Any]
Term = Callable[[Identity, Image | None], bool]
Rule = list[list[Term]]

OWN = "admin or owner and writer"
DEFAULTS: Mapping[str, str] = {
    "add_image": "writer",
    "get_image": "anyone",
    "get_images": "anyone",
    "modify_image": OWN,
    "delete_image": OWN,
    "publicize_image": "admin",
    "communitize_image": OWN,
    "set_image_owner": "admin",
    "upload_image": OWN,
    "download_image": "anyone",
    "download_deactivated_image": "admin",
    "deactivate": OWN,
    "reactivate": OWN,
    "stage_image": OWN,
    "copy_image": OWN,
    "delete_image_location": OWN,
    "get_image_location": "admin or role:service",
    "add_member": OWN,
    "get_member": "admin or owner or shared",
    "get_members": "admin or owner or shared",
    "modify_member": "admin or shared and writer",
    "delete_member": OWN,
    "get_tasks": "anyone",
    "get_metadef_namespaces": "anyone",
    "stores_info_detail": "admin",
}

_WORDS: Mapping[str, Term] = {
    "anyone": lambda who, image: True,
    "nobody": lambda who, image: False,
    "admin": lambda who, image: who.is_admin,
    "writer": lambda who, image: not who.is_reader_only,
    "owner": lambda who, image: image is not None and image["owner"] == who.project,
    "shared": lambda who, image: image is not None and who.project in image.get("members", ()),
}


class Policy:
    """The table with its overrides. Raises ConfigError for an action or a word that there is not."""

    def __init__(self, overrides: Mapping[str, Any] | None = None) -> None:
        for action in overrides or {}:
            if action not in DEFAULTS:
                raise ConfigError(f"unknown action policy.{action}; known are: {', '.join(sorted(DEFAULTS))}")
        self._rules = {action: _parse(action, rule) for action, rule in {**DEFAULTS, **(overrides or {})}.items()}

    def allows(self, action: str, who: Identity, image: Image | None = None) -> bool:
        """Whether the rule of `action` holds for `who`, and for the image where it is about one."""
        return any(all(term(who, image) for term in terms) for terms in self._rules[action])

    def require(self, action: str, who: Identity, image: Image | None = None, message: str | None = None) -> None:
        """Raises Forbidden where the rule does not hold."""
        if not self.allows(action, who, image):
            raise Forbidden(message or f"You are not authorized to complete {action} action.")


def _parse(action: str, rule: Any) -> Rule:
    if not isinstance(rule, str) or not rule.strip():
        raise ConfigError(f'policy.{action} must be a rule, as "admin or owner and writer"')
    return [[_term(action, word.strip()) for word in part.split(" and ")] for part in rule.split(" or ")]


def _term(action: str, word: str) -> Term:
    if word.startswith("role:") and len(word) > len("role:"):
        role = word.removeprefix("role:")
        return lambda who, image: role in who.roles
    if word not in _WORDS:
        raise ConfigError(f"policy.{action}: {word!r} is none of {', '.join(_WORDS)}, role:NAME")
    return _WORDS[word]
