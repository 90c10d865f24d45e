"""Images API v2 over HTTP: tasks, which are import jobs as clients look at them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from zonegw.errors import BadRequest, NotFound
from zonegw.http_frame import identity, json_response
from zonegw.images import Images
from zonegw.images_schema import timestamp
from zonegw.import_jobs import HOUR_US, Job
from zonegw.imports import Imports

TYPE = "api_image_import"
SORTS: dict[str, Callable[[Job], Any]] = {
    "id": lambda job: job.id, "type": lambda job: TYPE, "status": lambda job: job.status,
    "created_at": lambda job: job.created_us, "updated_at": lambda job: job.updated_us,
    "expires_at": lambda job: job.updated_us,
}  # fmt: skip
# A list of tasks leaves these to the task itself.
DETAILS = ("input", "result", "message")


@dataclass(slots=True)
class TasksV2:
    """Handlers."""

    images: Images
    imports: Imports

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v2/tasks", self.list, allow_head=False)
        router.add_get("/v2/tasks/{id}", self.show, allow_head=False)
        router.add_get("/v2/images/{id}/tasks", self.of_image, allow_head=False)

    async def list(self, request: web.Request) -> web.Response:
        self.images.policy.require("get_tasks", identity(request))
        query = request.query
        jobs = [job for job in self.imports.tasks(identity(request)) if _matches(job, query)]
        page, more = _page(_sorted(jobs, query), query, self.images.limits.page_images_default)
        shown = [{name: value for name, value in self._task(job).items() if name not in DETAILS} for job in page]
        body: dict[str, Any] = {"tasks": shown, "first": "/v2/tasks", "schema": "/v2/schemas/tasks"}
        if more:
            body["next"] = str(request.rel_url.update_query(marker=page[-1].id))
        return json_response(body)

    async def show(self, request: web.Request) -> web.Response:
        self.images.policy.require("get_tasks", identity(request))
        wanted = request.match_info["id"].lower()
        for job in self.imports.tasks(identity(request)):
            if job.id == wanted:
                return json_response(self._task(job))
        raise NotFound(f"No task found with ID {request.match_info['id']}")

    async def of_image(self, request: web.Request) -> web.Response:
        image = self.images.show(identity(request), request.match_info["id"])
        jobs = self.imports.tasks(identity(request), image["uuid"])
        return json_response({"tasks": [self._task(job) for job in jobs]})

    def _task(self, job: Job) -> dict[str, Any]:
        expires_us = job.updated_us + int(self.images.limits.import_results_keep_h * HOUR_US)
        method = {"name": job.method} | ({"uri": job.uri} if job.uri else {})
        return {
            "id": job.id, "type": TYPE, "status": job.status, "owner": job.project, "user_id": job.user,
            "image_id": job.uuid, "input": {"image_id": job.uuid, "import_req": {"method": method}}, "result": None,
            "message": job.message, "request_id": job.request_id, "created_at": timestamp(job.created_us),
            "updated_at": timestamp(job.updated_us), "expires_at": timestamp(expires_us) if job.done else None,
            "self": f"/v2/tasks/{job.id}", "schema": "/v2/schemas/task",
        }  # fmt: skip


def _matches(job: Job, query: Any) -> bool:
    return bool(query.get("status", job.status) == job.status and query.get("type", TYPE) == TYPE)


def _sorted(jobs: list[Job], query: Any) -> list[Job]:
    """Newest first, unless the query says otherwise."""
    key, direction = query.get("sort_key", "created_at"), query.get("sort_dir", "desc")
    if key not in SORTS or direction not in ("asc", "desc"):
        raise BadRequest(f"tasks are sorted by {', '.join(SORTS)}, asc or desc")
    return sorted(jobs, key=lambda job: (SORTS[key](job), job.id), reverse=direction == "desc")


def _page(jobs: list[Job], query: Any, default: int) -> tuple[list[Job], bool]:
    """A page, and whether there is more behind it."""
    limit = query.get("limit", str(default))
    if not (limit.isascii() and limit.isdigit()) or len(limit) > 9:
        raise BadRequest(f"limit must be a whole number, not {limit!r:.60}")
    if (marker := query.get("marker")) is not None:
        ids = [job.id for job in jobs]
        if marker not in ids:
            raise BadRequest(f"Marker {marker!r:.60} is not the ID of a task that you can see")
        jobs = jobs[ids.index(marker) + 1 :]
    return jobs[: int(limit)], 0 < int(limit) < len(jobs)
