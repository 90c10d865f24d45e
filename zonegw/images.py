"""Use cases on image metadata: create, update, delete, show.

Writes to images whose home is this zone are answered from the write-ahead queue: acknowledged = fsynced there. Writes
to other images need the registry's verdict and are refused while the uplink is down.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID, uuid4

from zonegw import overlay, visibility
from zonegw.catalogue import Catalogue
from zonegw.errors import BadRequest, BodyTooLarge, Conflict, Degraded, Forbidden, NotFound, Unavailable
from zonegw.id_pool import IdPool
from zonegw.identity import Identity
from zonegw.limits import Limits
from zonegw.policy import Policy
from zonegw.property_protection import PropertyProtections
from zonegw.quota_rules import QuotaRules
from zonegw.quotas import Quotas
from zonegw.store import Store, Txn, pack
from zonegw.write_queue import WriteQueue

Image = dict[str, Any]

DISK_FORMATS = ("ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "ploop", "iso")
CONTAINER_FORMATS = ("ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed")
VISIBILITIES = ("community", "public", "private", "shared")
# Attributes that a client may set; the others of an image are the gateway's and the registry's.
WRITABLE: dict[str, Any] = {
    "name": None, "disk_format": None, "container_format": None, "visibility": "shared", "owner": None, "min_disk": 0,
    "min_ram": 0, "protected": False, "os_hidden": False,
}  # fmt: skip
INT32_MAX = 2**31 - 1


class Registry(Protocol):
    """What images need of the way to the registry."""

    def available(self) -> bool: ...

    def away_reason(self) -> str: ...

    async def verdict(self, position: int, wait_s: float) -> None: ...

    def wake(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, and under which request ID. A write with `wait_s` is answered by the registry's verdict, or after so
    long without one; others as soon as this zone has them durably."""

    who: Identity
    request_id: str | None = None
    wait_s: float | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """An update: attributes to set, attributes to unset, as the registry names them (`properties.NAME`, `tags`);
    members to set, {project: {"status", "can_share"}} with what changes of each, and projects to remove."""

    set: dict[str, Any] = field(default_factory=dict)
    unset: list[str] = field(default_factory=list)
    set_members: dict[str, dict[str, Any]] = field(default_factory=dict)
    remove_members: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.set or self.unset or self.set_members or self.remove_members)


class Images:
    """Metadata use cases of one gateway."""

    def __init__(
        self,
        store: Store,
        queue: WriteQueue,
        ids: IdPool,
        catalogue: Catalogue,
        *,
        zone: str,
        gateway: str,
        limits: Limits,
        policy: Policy | None = None,
        protections: PropertyProtections | None = None,
        quotas: Quotas | None = None,
    ) -> None:
        self.quotas = quotas or Quotas(QuotaRules(), catalogue)
        self.policy = policy or Policy()
        self.protections = protections or PropertyProtections()
        self.store = store
        self.queue = queue
        self.ids = ids
        self.catalogue = catalogue
        self.zone = zone
        self.gateway = gateway
        self.limits = limits
        self.registry: Registry | None = None
        self.is_uploading: Callable[[str], bool] = lambda uuid: False
        # What imports add to an image: its state here, which the registry does not know.
        self.importing: Callable[[Image], Image] = lambda image: image
        # Whether the catalogue is for images like this one (the tenant set).
        self.kept: Callable[[Image], bool] = lambda image: True
        self.on_garbage: Callable[[], None] = lambda: None
        # Gets an image that is deleted before the registry ever heard of it: nobody else knows of its bytes.
        self.on_unsent_delete: Callable[[Txn, Image], None] = lambda txn, image: self.discard_bytes(
            txn, image["locations"]
        )
        self.on_delete: Callable[[Txn, str], None] = lambda txn, uuid: None

    # Reads.

    def show(self, who: Identity, uuid: str) -> Image:
        """The image as it is on the disk. Raises NotFound for what `who` may not know of."""
        image = self.find(self.store.committed(), who, uuid)
        self.policy.require("get_image", who, image)
        return self.readable(who, image)

    def find(self, txn: Txn, who: Identity, uuid: str) -> Image:
        """The image with all of its properties. Raises NotFound."""
        try:
            canonical = str(UUID(uuid))
        except ValueError:
            canonical = ""
        image = self.catalogue.get(txn, canonical) if canonical == uuid.lower() else None
        if image is None or not visibility.may_see(who, image):
            raise NotFound(f"No image found with ID {uuid}")
        return self.present(image)

    def numbered(self, who: Identity, number: int) -> Image:
        """The image with this number. Raises NotFound as `show` does."""
        image = self.catalogue.by_number(self.store.committed(), number)
        if image is None or not visibility.may_see(who, image):
            raise NotFound(f"No image found with ID {number}")
        return self.show(who, image["uuid"])

    def readable(self, who: Identity, image: Image) -> Image:
        """The image without the properties that are protected from this reader."""
        properties = self.protections.readable(who, image["properties"])
        return image if properties is image["properties"] else image | {"properties": properties}

    def present(self, image: Image) -> Image:
        """An image with the state of its upload or import in it."""
        if image["status"] == "queued" and self.is_uploading(image["uuid"]):
            return image | {"status": "saving"}
        return self.importing(image)

    # Create.

    async def create(
        self,
        request: Request,
        uuid: str | None,
        attributes: dict[str, Any],
        properties: dict[str, str],
        tags: list[str],
        *,
        numbered: bool = False,
    ) -> Image:
        """Acknowledge a new image: ID taken, write queued, overlay laid, in one durable transaction. Raises Unavailable
        where one that has to be `numbered` can't be."""
        attributes = self.check_create(request.who, attributes, properties, tags)
        with self.store.transaction(grows=True) as txn:
            image = self.append_create(
                txn, request, uuid or str(uuid4()), attributes, properties, tags, numbered=numbered
            )
            position = self.queue.highest_position(txn)
        await self.settle(image, position, request)
        return image if request.wait_s is None else self.show(request.who, image["uuid"])

    def check_create(
        self, who: Identity, attributes: dict[str, Any], properties: dict[str, str], tags: list[str]
    ) -> dict[str, Any]:
        """The attributes of a new image with those that were left out. Raises what a create of it would."""
        attributes = {**WRITABLE, "owner": who.project} | attributes
        check_attributes(attributes, properties, tags, self.limits)
        self._may_create(who, attributes, properties)
        return attributes

    def append_create(
        self, txn: Txn, request: Request, uuid: str, attributes: dict[str, Any], properties: dict[str, str],
        tags: list[str], *, numbered: bool = False,
    ) -> Image:  # fmt: skip
        """Queue a create that was checked, and lay it."""
        if self.catalogue.known(txn, uuid):
            raise Conflict(f"Image ID {uuid} already exists!")
        self.quotas.check_create(txn, attributes["owner"])
        command: dict[str, Any] = {
            "op": "create_image", "actor": self._actor(request), "uuid": uuid, "attributes": attributes,
            "properties": properties, "tags": tags, "home_zone": self.zone, "created_at": self.catalogue.now_us(),
        }  # fmt: skip
        if numbered:
            self.check_numbers(txn)
        number = self.ids.take(txn)
        if number is not None:
            command["number"] = number
        position = self.queue.append(txn, uuid, command)
        image = overlay.initial(command)
        self.catalogue.lay(txn, uuid, {"position": position, "kind": "create", "image": image})
        return image

    def check_numbers(self, txn: Txn) -> None:
        """Raises Unavailable while no image number is on hand."""
        if not self.ids.on_hand(txn):
            raise Unavailable("this zone has no image numbers left until it reaches the registry; nothing was kept")

    def _may_create(self, who: Identity, attributes: dict[str, Any], properties: dict[str, str]) -> None:
        self.policy.require("add_image", who, attributes)
        if attributes["owner"] != who.project:
            message = f"You are not permitted to create images owned by '{attributes['owner']}'"
            self.policy.require("set_image_owner", who, attributes, message)
        self._may_publish(who, attributes)
        if not self.kept(attributes | {"members": {}}):
            raise Forbidden(
                f"This zone keeps no images of project {attributes['owner']}: name it under [registry] tenants of the "
                "zone's gateways"
            )
        self._check_protected(who, (), properties, ())

    def _may_publish(self, who: Identity, image: Image) -> None:
        """`image` is as it would be."""
        if image["visibility"] == "public":
            self.policy.require("publicize_image", who, image, "You are not authorized to publicize images")
        elif image["visibility"] == "community":
            self.policy.require("communitize_image", who, image, "You are not authorized to communitize images")

    def _check_protected(
        self, who: Identity, present: Iterable[str], written: Iterable[str], removed: Iterable[str]
    ) -> None:
        refused = self.protections.refused(who, present, written, removed)
        if refused:
            raise Forbidden(f"Property '{refused}' is protected")

    # Update and delete.

    async def update(self, request: Request, uuid: str, changes: Changes) -> Image:
        """Acknowledge an update of an image that `who` may change; without changes it is a read."""
        image = self.writable(self.store.read(), request.who, uuid)
        if not changes:
            await self.store.durable()
            return self.readable(request.who, image)
        self._check_update(request.who, image, changes)
        await self.change(request, uuid, changes, "modify_image")
        return self.show(request.who, uuid)

    async def change(self, request: Request, uuid: str, changes: Changes, action: str) -> None:
        """Acknowledge checked changes for somebody who may do `action` with the image."""
        with self.store.transaction(grows=True) as txn:
            image = self.writable(txn, request.who, uuid, action)
            position = self.append_update(txn, request, image, changes)
        await self.settle(image, position, request)

    def _check_update(self, who: Identity, image: Image, changes: Changes) -> None:
        values = changes.set
        after = image | {name: value for name, value in values.items() if name in WRITABLE}
        _check_formats_kept(image, after)
        if after["visibility"] != image["visibility"]:
            self._may_publish(who, after)
        if after["owner"] != image["owner"]:
            message = "You are not permitted to modify 'owner' on this image"
            self.policy.require("set_image_owner", who, image, message)
        written = {n.removeprefix("properties."): v for n, v in values.items() if n.startswith("properties.")}
        removed = [name.removeprefix("properties.") for name in changes.unset]
        self._check_protected(who, image["properties"], written, removed)
        properties = {n: v for n, v in (image["properties"] | written).items() if n not in removed}
        check_attributes(after, properties, (image | values)["tags"], self.limits)

    async def activate(self, request: Request, uuid: str, *, active: bool) -> None:
        """Deactivate an image, whose bytes then only administrators get, or take that back."""
        action, wanted, other = (
            ("reactivate", "active", "deactivated") if active else ("deactivate", "deactivated", "active")
        )
        image = self.writable(self.store.read(), request.who, uuid, action)
        if image["status"] == wanted:
            return await self.store.durable()
        if image["status"] != other:
            raise Forbidden(f"Image status transition from {image['status']} to {wanted} is not allowed")
        return await self.change(request, uuid, Changes({"status": wanted}), action)

    async def add_tag(self, request: Request, uuid: str, tag: str) -> None:
        """Label the image; a label that it has is no error."""
        image = self.writable(self.store.read(), request.who, uuid)
        check_tags([*image["tags"], tag] if tag not in image["tags"] else [tag], self.limits)
        if tag not in image["tags"]:
            await self.change(request, uuid, Changes({"tags": [*image["tags"], tag]}), "modify_image")

    async def remove_tag(self, request: Request, uuid: str, tag: str) -> None:
        """Raises NotFound for a label that the image has not."""
        image = self.writable(self.store.read(), request.who, uuid)
        if tag not in image["tags"]:
            raise NotFound(f"Image {uuid} has no tag {tag!r}")
        await self.change(request, uuid, Changes({"tags": [t for t in image["tags"] if t != tag]}), "modify_image")

    def append_update(
        self, txn: Txn, request: Request, image: Image, changes: Changes,
        *, add_locations: list[dict[str, Any]] | None = None, remove_locations: list[str] | None = None,
        conditional: bool = True,
    ) -> int:  # fmt: skip
        """Queue an update and lay it over the image; `conditional` refuses it where another side changed the same.
        Locations are added whole and removed by key."""
        patch = {
            "set": changes.set, "unset": changes.unset, "add_locations": add_locations or [],
            "remove_locations": remove_locations or [],
        }  # fmt: skip
        if changes.set_members or changes.remove_members:
            patch |= {"set_members": changes.set_members, "remove_members": changes.remove_members}
        command = {
            "op": "update_image", "actor": self._actor(request), "image": self._reference(image), **patch,
        }  # fmt: skip
        if conditional:
            command["base_version"] = image["version"]
        return self._append(txn, request, image["uuid"], command, {"kind": "update"} | patch)

    async def delete(self, request: Request, uuid: str) -> None:
        """Acknowledge a delete; bytes go when the registry has the tombstone, or at once if it never had the image."""
        with self.store.transaction(reserved=True) as txn:
            image = self.writable(txn, request.who, uuid, "delete_image")
            if image["protected"]:
                raise Forbidden(f"Image {uuid} is protected and cannot be deleted.")
            command = {"op": "delete_image", "actor": self._actor(request), "image": self._reference(image)}
            unsent = self._never_sent(txn, image["uuid"])
            position = self._append(txn, request, image["uuid"], command, {"kind": "delete"})
            if unsent:
                self.on_unsent_delete(txn, image)
            self.on_delete(txn, image["uuid"])
        self.on_garbage()
        await self.settle(image, position, request)

    def _never_sent(self, txn: Txn, uuid: str) -> bool:
        create = self.catalogue.create_pending(txn, uuid)
        if create is None or create["state"] != "pending":
            return False
        write = self.queue.get(txn, create["position"])
        return write is not None and write.sequence is None and not write.reoffered

    def discard_bytes(self, txn: Txn, locations: list[dict[str, Any]]) -> None:
        """List bytes that no image owns any more for removal, durably, so that a crash can't leak them. Another zone is
        asked to drop what was put there from here; what its own images own it keeps."""
        for location in locations:
            key = location["key"].encode()
            if location["zone"] == self.zone:
                txn.put_row("garbage", key, {"since_us": self.catalogue.now_us(), "store": location["store"]})
                txn.delete("deposits", key)
            elif location["zone"] is not None:
                txn.put_row("far_garbage", key, {"zone": location["zone"]})

    def writable(self, txn: Txn, who: Identity, uuid: str, action: str = "modify_image") -> Image:
        """The image, if `who` may do `action` with it now. Raises NotFound, Forbidden, Degraded."""
        image = self.find(txn, who, uuid)
        self.policy.require(action, who, image)
        if image["home_zone"] != self.zone and (self.registry is None or not self.registry.available()):
            home = f"zone {image['home_zone']}" if image["home_zone"] else "the registry itself"
            away = self.registry.away_reason() if self.registry else "no registry is configured"
            raise Degraded(f"the home of this image is {home}, so this zone changes it only with the registry: {away}")
        return image

    def _append(self, txn: Txn, request: Request, uuid: str, command: dict[str, Any], patch: dict[str, Any]) -> int:
        """Queue a write about an existing image; behind a parked create it is parked at once."""
        create = self.catalogue.create_pending(txn, uuid)
        if create is not None and create["state"] == "parked":
            if request.wait_s is not None:
                raise Conflict(
                    f"the registry did not take image {uuid}, so there is no verdict to wait for: it is parked"
                )
            position = self.queue.park_new(txn, uuid, command, create["position"])
            patch = patch | {"state": "parked"}
        else:
            position = self.queue.append(
                txn, uuid, command, create["position"] if create else None, epoch=self.catalogue.epoch(txn)
            )
        self.catalogue.lay(txn, uuid, {"position": position} | patch)
        return position

    async def settle(self, image: Image, position: int, request: Request | None = None) -> None:
        """Wait for what acknowledges a write: own images the fsync, others the registry's verdict, which a client may
        want for own ones too."""
        await self._acknowledged()
        wait_s = None if request is None else request.wait_s
        if self.registry is not None and (wait_s is not None or image["home_zone"] != self.zone):
            await self.registry.verdict(position, self.limits.registry_wait_max_s if wait_s is None else wait_s)
            await self.store.durable()

    async def _acknowledged(self) -> None:
        await self.store.durable()
        if self.registry is not None:
            self.registry.wake()

    def _actor(self, request: Request) -> dict[str, Any]:
        return request.who.actor(self.zone, self.gateway, request.request_id)

    @staticmethod
    def _reference(image: Image) -> dict[str, Any]:
        return {"number": image["number"], "uuid": image["uuid"]}


def check_attributes(attributes: dict[str, Any], properties: dict[str, str], tags: list[str], limits: Limits) -> None:
    """Types, enumerations and bounds of what a client may set. Raises BadRequest or BodyTooLarge."""
    for name in ("name", "owner"):
        check_text(name, attributes[name], limits.name_max_chars)
    _check_choice("disk_format", attributes["disk_format"], (None, *DISK_FORMATS))
    _check_choice("container_format", attributes["container_format"], (None, *CONTAINER_FORMATS))
    _check_choice("visibility", attributes["visibility"], VISIBILITIES)
    for name in ("min_disk", "min_ram"):
        value = attributes[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= INT32_MAX:
            raise BadRequest(f"Invalid value '{value}' for {name}: it must be an integer from 0 to {INT32_MAX}")
    for name in ("protected", "os_hidden"):
        if not isinstance(attributes[name], bool):
            raise BadRequest(f"Invalid value '{attributes[name]}' for {name}: it must be true or false")
    _check_formats_match(attributes)
    _check_properties(properties, limits)
    check_tags(tags, limits)
    if len(pack([attributes["name"], properties, tags])) > limits.metadata_max_bytes:
        raise BodyTooLarge(f"the image's metadata is larger than {limits.metadata_max_bytes} bytes")


def _check_formats_kept(image: Image, after: Image) -> None:
    """Data are inspected as what their image says when they become its own."""
    for name in ("disk_format", "container_format"):
        if after[name] != image[name] and image["status"] not in ("queued", "uploading"):
            raise Forbidden(f"Attribute '{name}' can be changed only while the image is queued")


def _check_formats_match(attributes: dict[str, Any]) -> None:
    disk, container = attributes["disk_format"], attributes["container_format"]
    if disk in ("ami", "ari", "aki") and container in ("ami", "ari", "aki") and disk != container:
        raise BadRequest("Invalid mix of disk and container formats: for an Amazon image both must be the same")


def check_text(name: str, value: Any, chars: int) -> None:
    """Raises BadRequest for what is no text of at most `chars` characters, or has a U+0000."""
    if value is not None and (not isinstance(value, str) or len(value) > chars):
        raise BadRequest(f"Invalid value for {name}: it must be a text of at most {chars} characters")
    _check_no_nul(name, value or "")


def _check_no_nul(what: str, text: str) -> None:
    """The registry takes no U+0000: a write with one would be acknowledged here and parked then."""
    if "\x00" in text:
        raise BadRequest(f"{what} contains the character U+0000: remove it")


def _check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise BadRequest(f"Invalid value '{value}' for {name}: it must be one of {', '.join(c for c in choices if c)}")


def _check_properties(properties: dict[str, str], limits: Limits) -> None:
    if len(properties) > limits.properties_max:
        raise BodyTooLarge(f"an image has at most {limits.properties_max} properties")
    for name, value in properties.items():
        if not name or len(name) > limits.name_max_chars:
            raise BadRequest(f"a property's name must have 1 to {limits.name_max_chars} characters")
        if not isinstance(value, str):
            raise BadRequest(f"Invalid value {value!r} for property {name}: it must be a text")
        if len(value.encode("utf-8", "surrogatepass")) > limits.property_value_max_bytes:
            raise BodyTooLarge(f"property {name} is larger than {limits.property_value_max_bytes} bytes")
        _check_no_nul("a property", name + value)


def check_tags(tags: list[str], limits: Limits) -> None:
    if len(tags) > limits.tags_max:
        raise BodyTooLarge(f"an image has at most {limits.tags_max} tags")
    for tag in tags:
        if not tag or len(tag) > limits.tag_max_chars:
            raise BadRequest(f"a tag must be a text of 1 to {limits.tag_max_chars} characters")
        _check_no_nul("a tag", tag)
