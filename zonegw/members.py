"""Use cases on members: the projects that an image is shared with. The writes are updates of the image, so that they
work while the zone is cut off. Only images whose visibility is `shared` have members, in v1 too, which creates every
image that is not public as a shared one."""

from typing import Any

from zonegw import listing, visibility
from zonegw.errors import BadRequest, BodyTooLarge, Conflict, Forbidden, NotFound
from zonegw.identity import Identity
from zonegw.images import Changes, Image, Images, Request, check_text

Member = dict[str, Any]


class Members:
    """Members of images: {"member_id", "image_id", "status", "can_share", "created_at", "updated_at"}, times in µs.
    Who is only a member of an image sees no other one of it."""

    def __init__(self, images: Images) -> None:
        self._images = images

    async def of(self, who: Identity, uuid: str) -> list[Member]:
        """The image's members that `who` may know of, by project."""
        image = await self._shown(who, uuid, "get_members")
        return [_member(image, project) for project in sorted(image["members"]) if self._knows(who, image, project)]

    async def show(self, who: Identity, uuid: str, project: str) -> Member:
        image = await self._shown(who, uuid, "get_member")
        if project not in image["members"] or not self._knows(who, image, project):
            raise NotFound(f"{project} is no member of image {uuid}")
        return _member(image, project)

    async def add(self, request: Request, uuid: str, project: str, *, can_share: bool = False) -> Member:
        """Share the image with a project, which has yet to accept it. Raises Conflict where it is shared already."""
        image = self._shareable(request, uuid, "add_member")
        if project in image["members"]:
            raise Conflict(f"Image {uuid} is shared with {project} already")
        self._check_projects(image, [project])
        await self._images.change(request, uuid, Changes(set_members={project: {"can_share": can_share}}), "add_member")
        return _member(self._images.find(self._images.store.read(), request.who, uuid), project)

    async def answer(self, request: Request, uuid: str, project: str, status: str) -> Member:
        """The member's own word on the sharing: pending, accepted or rejected."""
        if status not in visibility.MEMBER_STATUSES:
            raise BadRequest(f"status must be one of {', '.join(visibility.MEMBER_STATUSES)}, not {status!r:.60}")
        image = self._shareable(request, uuid, "modify_member")
        who = request.who
        if project not in image["members"] or not self._knows(who, image, project):
            raise NotFound(f"{project} is no member of image {uuid}")
        if project != who.project and not who.is_admin:
            raise Forbidden("Only the member itself answers")
        await self._images.change(request, uuid, Changes(set_members={project: {"status": status}}), "modify_member")
        return _member(self._images.find(self._images.store.read(), who, uuid), project)

    async def remove(self, request: Request, uuid: str, project: str) -> None:
        image = self._shareable(request, uuid, "delete_member")
        if project not in image["members"]:
            raise NotFound(f"{project} is no member of image {uuid}")
        await self._images.change(request, uuid, Changes(remove_members=[project]), "delete_member")

    async def replace(self, request: Request, uuid: str, wanted: dict[str, bool]) -> None:
        """Share with exactly these projects, {project: can share on}; what they answered before stays."""
        image = self._shareable(request, uuid, "add_member")
        self._check_projects(image, list(wanted), replacing=True)
        changed = {
            project: {"can_share": can_share}
            for project, can_share in wanted.items()
            if image["members"].get(project, {}).get("can_share") != can_share
        }
        changes = Changes(set_members=changed, remove_members=sorted(set(image["members"]) - set(wanted)))
        if changes:
            await self._images.change(request, uuid, changes, "add_member")

    async def put(self, request: Request, uuid: str, project: str, can_share: bool | None) -> None:
        """Share with a project, or change whether it may share on; None keeps that, and is False for a new member."""
        image = self._shareable(request, uuid, "add_member")
        old = image["members"].get(project)
        if old is not None and can_share in (None, old["can_share"]):
            return await self._images.store.durable()
        self._check_projects(image, [project])
        changes = Changes(set_members={project: {"can_share": bool(can_share)}})
        return await self._images.change(request, uuid, changes, "add_member")

    async def shared_with(self, who: Identity, project: str) -> list[tuple[Image, Member]]:
        """Images shared with a project, whatever it answered, newest first; at most a page of them. Raises Forbidden
        for another project than one's own."""
        if project != who.project and not who.is_admin:
            raise Forbidden("Only a member itself may ask what is shared with it")
        txn = self._images.store.read()
        found: list[tuple[Image, Member]] = []
        scopes = [listing.member_scope(project, status) for status in visibility.MEMBER_STATUSES]
        for _, uuid in listing.walk(txn, scopes, "created_at", reverse=True):
            image = self._images.catalogue.get(txn, uuid)
            if image is not None:
                found.append((self._images.present(image), _member(image, project)))
            if len(found) >= self._images.limits.page_images_max:
                break
        await self._images.store.durable()
        return found

    # Rules.

    async def _shown(self, who: Identity, uuid: str, action: str) -> Image:
        image = self._images.show(who, uuid)
        self._check_shared(image)
        self._images.policy.require(action, who, image)
        return image

    def _shareable(self, request: Request, uuid: str, action: str) -> Image:
        image = self._images.writable(self._images.store.read(), request.who, uuid, action)
        self._check_shared(image)
        return image

    @staticmethod
    def _check_shared(image: Image) -> None:
        if image["visibility"] != "shared":
            raise Forbidden("Only shared images have members: set the image's visibility to shared")

    def _check_projects(self, image: Image, projects: list[str], *, replacing: bool = False) -> None:
        for project in projects:
            if not project:
                raise BadRequest("name the project to share with")
            check_text("member", project, self._images.limits.name_max_chars)
        after = set(projects) if replacing else {*image["members"], *projects}
        if len(after) > self._images.limits.members_max:
            raise BodyTooLarge(f"an image is shared with at most {self._images.limits.members_max} projects")

    @staticmethod
    def _knows(who: Identity, image: Image, project: str) -> bool:
        return who.is_admin or image["owner"] == who.project or project == who.project


def _member(image: Image, project: str) -> Member:
    member: Member = image["members"][project]
    return {"member_id": project, "image_id": image["uuid"]} | member
