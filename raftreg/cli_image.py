"""`raftreg image`: images as the registry has them. Their data come and go through the gateways of the zones."""

from __future__ import annotations

import argparse
from typing import Any

from raftreg import errors
from raftreg.cli_connection import (
    DONE,
    Commands,
    WrongUsage,
    add_connection,
    add_key,
    add_noun,
    ask,
    count,
    pair,
    print_fields,
    print_json,
    print_rows,
)
from raftreg.client import Client
from raftreg.commands import CONTAINER_FORMATS, DISK_FORMATS, PROPERTY_PREFIX, VISIBILITIES
from raftreg.listing import BETWEEN, EQUAL, SORT_KEYS

_EXAMPLES = """\
  raftreg image list --visibility public --sort name:asc --limit 20
  raftreg image list --filter disk_format=raw --filter size_min=1000000000 --filter tag=stable --sort size:desc
  raftreg image show 4711 --json
  raftreg image create --name cirros --disk-format qcow2 --container-format bare --property os_distro=cirros --tag test
  raftreg image update 4711 --name cirros-0.6 --remove-property os_distro --tag stable --remove-tag test
  raftreg image update 4711 --unprotected
  raftreg image delete 0b1c2d3e-0000-4000-8000-00000000000a
  raftreg image lost --owner demo
"""
_COLUMNS = ("number", "uuid", "name", "status", "visibility", "owner", "home_zone", "size")
_LOST_COLUMNS = ("number", "uuid", "name", "status", "owner", "size", "held_by")
_TEXTS = ("name", "owner", "visibility", "disk_format", "container_format")
_NUMBERS = ("min_disk", "min_ram")


def add(commands: Commands) -> None:
    verbs = add_noun(commands, "image", "look at images, create, change and delete them", _EXAMPLES)
    _add_list(verbs)
    show = _add_verb(verbs, "show", "one image by number or UUID", _show)
    show.add_argument("image", metavar="IMAGE")
    _add_create(verbs)
    _add_update(verbs)
    _add_delete(verbs)
    lost = _add_verb(
        verbs,
        "lost",
        "images whose data nobody can get: no live zone holds any",
        _lost,
        "Images that are active or deactivated, without an active location in a live zone, oldest first. `held by` "
        "names the zones that have the data and are away: with them the images come back. Where it is empty, nobody "
        "has them.",
    )
    lost.add_argument("--owner")
    lost.add_argument("--limit", type=count, default=50, metavar="N", help="at most so many; default 50")
    lost.add_argument("--marker", type=count, metavar="NUMBER", help="the last image of the page before")


def _add_verb(verbs: Commands, verb: str, help_text: str, run: Any, description: str | None = None) -> Any:
    parser = verbs.add_parser(verb, help=help_text, description=description)
    add_connection(parser)
    parser.set_defaults(run=run)
    return parser


def _add_list(verbs: Commands) -> None:
    listing = _add_verb(verbs, "list", "one page of images, newest first", _list)
    for name in ("owner", "visibility", "name", "status", "home-zone"):
        listing.add_argument(f"--{name}")
    listing.add_argument(
        "--filter",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=VALUE",
        help=f"one of {', '.join(EQUAL)}; of {', '.join(BETWEEN)} NAME_min, NAME_max; properties.NAME; may be repeated",
    )
    listing.add_argument(
        "--sort", default="created_at:desc", metavar="KEY[:asc|:desc]", help=f"one of {', '.join(SORT_KEYS)}"
    )
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--marker", type=int, help="number of the last image of the page before")


def _add_create(verbs: Commands) -> None:
    create = _add_verb(
        verbs,
        "create",
        "create an image; its number is issued here",
        _create,
        "The image is queued: it has no data until they are uploaded through a gateway.",
    )
    create.add_argument("--id", metavar="UUID", help="default: a new one")
    create.add_argument("--home-zone", metavar="ZONE", help="whose gateways may write it while cut off; default: none")
    _add_attributes(create)
    create.add_argument("--tag", action="append", default=[], metavar="TAG", help="may be repeated")


def _add_update(verbs: Commands) -> None:
    update = _add_verb(
        verbs,
        "update",
        "change what is named, and nothing else",
        _update,
        "With --base-version, or when tags are added or removed, it is refused if somebody changed the same attribute "
        "meanwhile: look at the image again and decide anew.",
    )
    update.add_argument("image", metavar="IMAGE")
    _add_attributes(update)
    update.add_argument("--remove-property", action="append", default=[], metavar="NAME", help="may be repeated")
    update.add_argument("--tag", action="append", default=[], metavar="TAG", help="add it; may be repeated")
    update.add_argument("--remove-tag", action="append", default=[], metavar="TAG", help="may be repeated")
    status = update.add_mutually_exclusive_group()
    status.add_argument("--deactivate", dest="status", action="store_const", const="deactivated", help="no downloads")
    status.add_argument("--reactivate", dest="status", action="store_const", const="active")
    update.add_argument("--base-version", type=count, metavar="VERSION", help="the version that you have seen")
    update.add_argument("--force", action="store_true", help="although the home zone is away")


def _add_attributes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name")
    parser.add_argument("--owner", metavar="PROJECT")
    parser.add_argument("--visibility", help=", ".join(VISIBILITIES))
    parser.add_argument("--disk-format", metavar="FORMAT", help=", ".join(sorted(DISK_FORMATS)))
    parser.add_argument("--container-format", metavar="FORMAT", help=", ".join(sorted(CONTAINER_FORMATS)))
    parser.add_argument("--min-disk", type=int, metavar="GB")
    parser.add_argument("--min-ram", type=int, metavar="MB")
    for attribute, (yes, no), help_text in (
        ("protected", ("protected", "unprotected"), "it cannot be deleted"),
        ("os_hidden", ("hidden", "unhidden"), "it is left out of gateways' listings"),
    ):
        group = parser.add_mutually_exclusive_group()
        group.add_argument(f"--{yes}", dest=attribute, action="store_const", const=True, help=help_text)
        group.add_argument(f"--{no}", dest=attribute, action="store_const", const=False)
    parser.add_argument(
        "--property", action="append", default=[], type=pair, metavar="NAME=VALUE", help="may be repeated"
    )
    add_key(parser)


def _add_delete(verbs: Commands) -> None:
    delete = _add_verb(
        verbs,
        "delete",
        "delete an image for ever",
        _delete,
        "Its number and UUID are never used again. A protected image is refused: unprotect it first.",
    )
    delete.add_argument("image", metavar="IMAGE")
    delete.add_argument("--force", action="store_true", help="although the home zone is away")
    add_key(delete)


def _list(arguments: argparse.Namespace) -> int:
    names = ("owner", "visibility", "name", "status", "home_zone", "sort", "limit", "marker")
    filters = {name: getattr(arguments, name) for name in names}
    for name, value in arguments.filter:
        filters[name] = [*filters.get(name, []), value] if name == "tag" else value
    page = ask(arguments, lambda client: client.list_images(**filters))
    if arguments.json:
        print_json(page)
        return DONE
    print_rows(_COLUMNS, page["images"])
    if page["next"] is not None:
        print(f"more: --marker {page['next']}")
    return DONE


def _lost(arguments: argparse.Namespace) -> int:
    page = ask(arguments, lambda client: _lost_page(client, arguments))
    if arguments.json:
        print_json(page)
        return DONE
    print_rows(_LOST_COLUMNS, ({**image, "held_by": ", ".join(_holders(image))} for image in page["images"]))
    if page["next"] is not None:
        print(f"more: --marker {page['next']}")
    return DONE


async def _lost_page(client: Client, arguments: argparse.Namespace) -> dict[str, Any]:
    """As many as were asked for: the registry looks at a bounded number of images for one page."""
    images: list[Any] = []
    marker, filters = arguments.marker, {"lost": True, "owner": arguments.owner, "sort": "created_at:asc"}
    while True:
        page = await client.list_images(**filters, marker=marker, limit=arguments.limit - len(images))
        images += page["images"]
        marker = page["next"]
        if marker is None or len(images) >= arguments.limit:
            return {"images": images, "next": marker}


def _holders(image: dict[str, Any]) -> list[str]:
    """The zones that have an image's data."""
    return sorted({location["zone"] for location in image["locations"] if location["status"] == "active"})


def _show(arguments: argparse.Namespace) -> int:
    return _print(arguments, ask(arguments, lambda client: client.get_image(arguments.image)))


def _create(arguments: argparse.Namespace) -> int:
    fields = {
        "uuid": None if arguments.id is None else arguments.id.lower(),
        "home_zone": arguments.home_zone,
        "attributes": _attributes(arguments),
        "properties": dict(arguments.property),
        "tags": arguments.tag,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return _print(arguments, ask(arguments, lambda client: client.create_image(key=arguments.key, **given)))


def _update(arguments: argparse.Namespace) -> int:
    wanted = _attributes(arguments)
    wanted |= {PROPERTY_PREFIX + name: value for name, value in arguments.property}
    if arguments.status is not None:
        wanted["status"] = arguments.status
    unset = [PROPERTY_PREFIX + name for name in arguments.remove_property]
    if not (wanted or unset or arguments.tag or arguments.remove_tag):
        raise WrongUsage("name what is to be changed, for example --name NAME (raftreg image update --help)")
    if arguments.key is not None and (arguments.tag or arguments.remove_tag):
        raise WrongUsage("a change of tags follows on what is read first, so repeat it without --key")
    return _print(arguments, ask(arguments, lambda client: _updated(client, arguments, wanted, unset)))


async def _updated(
    client: Client, arguments: argparse.Namespace, wanted: dict[str, Any], unset: list[str]
) -> dict[str, Any]:
    """The image after the change. Tags change as a whole, so that adding one must follow on what was read."""
    base_version, tags = arguments.base_version, bool(arguments.tag or arguments.remove_tag)
    if tags:
        image = await client.get_image(arguments.image)
        base_version = base_version or image["version"]
        kept = [tag for tag in image["tags"] if tag not in arguments.remove_tag]
        wanted["tags"] = list(dict.fromkeys([*kept, *arguments.tag]))
    more = {"force": True} if arguments.force else {}
    try:
        return await client.update_image(
            arguments.image, wanted, unset=unset, base_version=base_version, key=arguments.key, **more
        )
    except errors.OutcomeUnknown:
        if tags:
            # The same key would come with another request, since what was read has changed.
            raise errors.OutcomeUnknown("no answer: it may have been changed; the same command is safe again") from None
        raise


def _delete(arguments: argparse.Namespace) -> int:
    deleted = ask(
        arguments, lambda client: client.delete_image(arguments.image, force=arguments.force, key=arguments.key)
    )
    if arguments.json:
        print_json(deleted)
    else:
        print(f"image {deleted['number']} ({deleted['uuid']}) is deleted")
    return DONE


def _attributes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The core attributes that were named."""
    values = {name: getattr(arguments, name) for name in (*_TEXTS, *_NUMBERS, "protected", "os_hidden")}
    return {name: value for name, value in values.items() if value is not None}


def _print(arguments: argparse.Namespace, image: dict[str, Any]) -> int:
    if arguments.json:
        print_json(image)
    else:
        print_fields(image)
    return DONE
