"""Projects over HTTP: what they own, and quotas."""

from __future__ import annotations

from aiohttp import web

from raftreg import errors, queries, wire
from raftreg.api_context import Context, take

_QUOTA = {"images_max": int, "bytes_max": int}
_NAME_CHARS_MAX = 255


class Projects:
    """Handlers of /registry/v1/projects."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> list[web.RouteDef]:
        projects, project = f"{wire.PREFIX}/projects", f"{wire.PREFIX}/projects/{{project}}"
        return [
            web.get(projects, self.list, allow_head=False),
            web.get(project, self.show, allow_head=False),
            web.put(project, self.set_quota),
        ]

    async def list(self, request: web.Request) -> web.Response:
        """{"projects": [project...], "next": name to give as `after`, or null at the end}"""
        rows_max = self._context.page_rows(request)
        view = await self._context.view(request)
        projects, following = queries.list_projects(view, request.query.get("after"), rows_max)
        return self._context.answer(request, {"projects": projects, "next": following})

    async def show(self, request: web.Request) -> web.Response:
        """{"project": {"project", "images", "bytes", "images_max", "bytes_max"}}; all zero of one that owns nothing."""
        name = _name(request)
        view = await self._context.view(request)
        return self._context.answer(request, {"project": queries.get_project(view, name)})

    async def set_quota(self, request: web.Request) -> web.Response:
        """The quota becomes what the body says; what is not named, or null, has no bound. Nothing is taken away."""
        context = self._context
        caller = context.caller(request)
        caller.require_role("operator")
        quota = take(await context.body(request), _QUOTA)
        command = {"op": "set_quota", "project": _name(request), **{name: quota.get(name) for name in _QUOTA}}
        return context.answer(request, await context.propose(request, caller, command))


def _name(request: web.Request) -> str:
    name: str = request.match_info["project"]
    if len(name) > _NAME_CHARS_MAX:
        raise errors.BadRequest(f"a project's name has at most {_NAME_CHARS_MAX} characters, not {len(name)}")
    return name
