"""The page as a Starlette application. Starlette, sse-starlette and uvicorn are an extra.

It answers on the loopback address alone, to whoever knows its token: the address that `research.page` prints holds it,
and a cookie from then on. A Host or an Origin that is another's is refused, so that no page in a browser reaches it,
and what is served may load nothing from elsewhere, nor run a script that is not its own.
"""

from __future__ import annotations

import asyncio
import csv
import io
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import anyio
from sse_starlette.sse import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxnano.cli import Failure, UserError
from research.ledger.events import SessionError
from research.outside.page import acts, charts, views
from research.outside.page.reader import Reader, Shelf
from research.show import pages
from research.show.verdict import summary, verdict

STATIC = Path(__file__).with_name("static")
POLL_S, MOST = 0.5, 12  # between two looks for events; sessions side by side in a chart
CLOSING_S = 2  # that an answer has to end in once the server stops
SOON_S, WAITED = 0.3, 8  # until a page is painted without what it will show; answers that are kept for such pages
HEADERS = {"content-security-policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
           "frame-ancestors 'none'", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
           "cross-origin-resource-policy": "same-origin", "cache-control": "no-store"}


class Guard:
    """Refuses whoever has not the token, or comes by another name; gives the cookie for the token once.

    Args: hosts: names and port by which the page is reached.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...]):
        self.app, self.token, self.hosts = app, token, hosts
        self.cookie = "page-" + hosts[0].rpartition(":")[2]  # cookies do not tell ports apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refused(request) or self.app)(scope, receive, guarded)

    def _refused(self, request: Request) -> Response | None:
        if request.headers.get("host", "") not in self.hosts:
            return PlainTextResponse("this page has another name; the address that research.page printed would do", 421)
        origin = request.headers.get("origin")
        if origin not in (None, *(f"http://{host}" for host in self.hosts)):
            return PlainTextResponse("a page of another origin may not ask", 403)
        given = request.query_params.get("token")
        if given is not None and secrets.compare_digest(given.encode(), self.token.encode()):
            left = urlencode([pair for pair in parse_qsl(request.url.query) if pair[0] != "token"])
            answer = RedirectResponse(request.url.path + (f"?{left}" if left else ""), 303)
            answer.set_cookie(self.cookie, self.token, httponly=True, samesite="strict")
            return answer
        known = request.cookies.get(self.cookie, "")
        if not secrets.compare_digest(known.encode(), self.token.encode()):
            return PlainTextResponse("the address that research.page printed, with its token, would do", 403)
        return None


class Page:
    """Answers about the sessions of a shelf. Methods that are no coroutines are given threads of their own, for a long
    ledger takes seconds to read."""

    def __init__(self, shelf: Shelf, soon_s: float | None):
        self.shelf, self.soon_s = shelf, soon_s
        self._late: dict[str, asyncio.Task[Response]] = {}

    def reader(self, request: Request) -> Reader:
        """The session that is asked for."""
        try:
            return self.shelf[request.path_params["name"]]
        except KeyError:
            raise HTTPException(404, f"{request.path_params['name']}: no such session") from None
        except (SessionError, Failure) as error:
            raise HTTPException(409, str(error)) from None

    async def home(self, request: Request) -> Response:
        """The sessions of the folder, or the one there is."""
        if self.shelf.one:
            return RedirectResponse(f"/s/{self.shelf.path.name}/overview")
        return await self._soon(request, self._home)

    def _home(self, request: Request) -> Response:
        found = []
        for name in self.shelf.names():
            row: dict[str, Any] = {"name": name, "fault": self.shelf.fault(name)}
            if not row["fault"]:
                reader = self.shelf[name]
                with reader.reading() as facts:
                    row |= {"facts": facts, "verdict": verdict(facts), "running": reader.running,
                            "champion": facts.champion(), "standing": views.standing(facts)}
            found.append(row)
        return self._html(request, "home", self.shelf.path.name, {"sessions": found})

    def climbs(self, request: Request) -> Response:
        """How far the sessions on the latest one's track have come, in one chart."""
        shown, track, unit = [], None, ""
        for name in self.shelf.names()[:MOST]:
            if not self.shelf.fault(name):
                with self.shelf[name].reading() as facts:
                    track = track or facts.state.session.track_hash
                    if facts.state.session.track_hash == track:
                        unit = facts.unit
                        shown.append(charts.best_so_far(name, facts))
        return JSONResponse({"x": "device-seconds", "y": f"effect, {unit}", "zero": True, "series": shown})

    async def view(self, request: Request) -> Response:
        """A view of a session; the part of it that changes alone, where htmx asks."""
        return await self._soon(request, self._view)

    async def _soon(self, request: Request, make: Callable[[Request], Response]) -> Response:
        """What is made, if that is soon; else a page in its place that asks for it once it is painted."""
        task = self._late.pop(str(request.url), None) if _late(request) else None
        task = task or asyncio.create_task(run_in_threadpool(make, request))
        whole = "hx-request" not in request.headers and "csv" not in request.query_params
        done, _ = await asyncio.wait({task}, timeout=self.soon_s if whole else None)
        if done:
            return task.result()
        self._late[str(request.url)] = task
        for url in [*self._late][:-WAITED]:
            del self._late[url]
        name = request.path_params.get("name")
        about = {"session": name, "query": dict(request.query_params), "folder": True} if name else {}
        return self._html(request, request.path_params.get("view", "home"), name or self.shelf.path.name,
                          about | {"pending": request.url.path + f"?{request.url.query}" * bool(request.url.query)})

    def _view(self, request: Request) -> Response:
        name, view, reader = request.path_params["name"], request.path_params["view"], self.reader(request)
        query = dict(request.query_params)
        with reader.reading() as facts:
            if view == "log":
                context = views.log(facts, query, reader.session.ledger)
            elif view == "call":
                try:
                    context = views.call(facts, query, reader.session)
                except KeyError as error:
                    raise HTTPException(404, f"{error.args[0]}: what was said is not kept") from None
            elif view == "propose":
                context = acts.form(facts, query)
            elif view in views.VIEWS:
                try:
                    context = views.VIEWS[view](facts, query)
                except KeyError as error:
                    raise HTTPException(404, f"{error.args[0] or 'no id'}: no recipe of this session begins with it") \
                        from None
            else:
                raise HTTPException(404, f"{view}: no such view")
            if request.query_params.get("csv") and view == "recipes":
                return _csv(context["rows"])
            about = {"facts": facts, "state": facts.state, "alive": reader.running, "query": query,
                     "folder": not self.shelf.one}
            return self._html(request, view, name, about | context | {"session": name})

    def _html(self, request: Request, view: str, title: str, context: Mapping[str, Any]) -> Response:
        template = f"page/{view}.html" if _part(request) else "page/layout.html"
        text = pages.environment("html").get_template(template).render(
            view=view, title=title, url=lambda v, **q: _url(context.get("session"), v, q), **context)
        return HTMLResponse(text)

    def chart(self, request: Request) -> Response:
        """A chart's data."""
        query = request.query_params
        with self.reader(request).reading() as facts:
            match request.path_params["chart"]:
                case "staircase":
                    return JSONResponse(charts.staircase(facts))
                case "curves":
                    return JSONResponse(charts.curves(facts, query.get("id", "")))
                case "evidence" if query.get("attempt", "").isdigit():
                    return JSONResponse(charts.evidence(facts, int(query["attempt"])))
        raise HTTPException(404, "no such chart")

    def facts(self, request: Request) -> Response:
        """All facts of the session, as `research.status --json` says them."""
        reader = self.reader(request)
        with reader.reading() as facts:
            return JSONResponse(summary(facts) | {"running": reader.running})

    async def events(self, request: Request) -> Response:
        """The number of the last event, whenever there is another."""
        reader, closing = await run_in_threadpool(self.reader, request), anyio.Event()

        async def changes() -> AsyncIterator[dict[str, str]]:
            seen = await run_in_threadpool(reader.seq)
            while not (closing.is_set() or await request.is_disconnected()):
                with anyio.move_on_after(POLL_S):
                    await closing.wait()  # the server stops, and the answer ends as answers do
                if (now := await run_in_threadpool(reader.seq)) != seen:
                    seen = now
                    yield {"event": "changed", "data": str(now)}
        return EventSourceResponse(changes(), ping=15, shutdown_event=closing, shutdown_grace_period=CLOSING_S)

    async def act(self, request: Request) -> Response:
        """What a person says: a proposal to judge or to submit, a word on a recipe."""
        reader = await run_in_threadpool(self.reader, request)
        form = {key: str(value) for key, value in (await request.form()).items()}
        try:
            found = await run_in_threadpool(acts.ACTS[request.path_params["act"]], reader.session.path, form)
        except KeyError:
            raise HTTPException(404, "no such act") from None
        except (UserError, Failure) as error:
            found = {"template": "said", "fault": str(error)}
        template = f"page/{found.pop('template')}.html"
        name = request.path_params["name"]
        return HTMLResponse(pages.environment("html").get_template(template).render(
            url=lambda v, **q: _url(name, v, q), session=name, **found))

    def trial_file(self, request: Request) -> Response:
        """A trial's log or metrics."""
        reader, key, file = self.reader(request), request.path_params["key"], request.path_params["file"]
        with reader.reading() as facts:
            known = key in facts.state.trials
        path = reader.session.trials / key / file
        if not known or file not in ("log.txt", "metrics.jsonl") or path.is_symlink() or not path.is_file():
            raise HTTPException(404, f"{key}: no {file} there")
        return PlainTextResponse(path.read_text("utf-8", "replace"))


def _late(request: Request) -> bool:
    """Whether a page asks that was painted without what it shows."""
    return request.headers.get("hx-target") == "main"


def _part(request: Request) -> bool:
    """Whether htmx asks for the part of a page that changes."""
    return "hx-request" in request.headers and not _late(request)


def _url(session: str | None, view: str, query: Mapping[str, Any]) -> str:
    told = urlencode({name: value for name, value in query.items() if value not in (None, "")})
    return f"/s/{session}/{view}" + (f"?{told}" if told else "")


def _csv(rows: Any) -> Response:
    names = ("number", "recipe_id", "name", "lane", "status", "mean", "sd", "over", "over_n", "loss", "n", "runs",
             "spent", "parent")
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _plain(row[name]) for name in names} for row in rows)
    return Response(text.getvalue(), media_type="text/csv",
                    headers={"content-disposition": 'attachment; filename="recipes.csv"'})


def _plain(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t" and value else value


async def _fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status, detail = error.status_code, error.detail
    text = pages.environment("html").get_template("page/fault.html").render(
        title="not there", detail=detail, live=_part(request))
    return HTMLResponse(text, status)


def application(shelf: Shelf, token: str, hosts: tuple[str, ...], soon_s: float | None = SOON_S) -> ASGIApp:
    """The page of a shelf, behind its guard. soon_s: how long a browser waits for a view before it paints without."""
    page = Page(shelf, soon_s)
    routes = [Route("/", page.home), Route("/climbs.json", page.climbs),
              Mount("/static", StaticFiles(directory=STATIC)), Route("/s/{name}/events", page.events),
              Route("/s/{name}/facts.json", page.facts),
              Route("/s/{name}/chart/{chart}.json", page.chart),
              Route("/s/{name}/act/{act}", page.act, methods=["POST"]),
              Route("/s/{name}/trial/{key}/{file}", page.trial_file), Route("/s/{name}/{view}", page.view)]
    return Guard(Starlette(routes=routes, exception_handlers={HTTPException: _fault}), token, hosts)
