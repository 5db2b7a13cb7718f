"""The local web page: HTTP around a study. What annotators may do is in `study`, who may do it in `guard`."""

import json
import logging
import math
import socket
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from .export import csv_text, json_text, ratings
from .guard import HEADERS, HOSTS, Door, Session, Sessions, objection
from .study import Refused, Stale, Study

PAGES = Path(__file__).parent / "pages"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
LOST = "The server does not know you any more: it was restarted, or you left. Nothing that was saved is lost."


class HttpError(Exception):
    """An error that is answered with a status and a message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.message, self.headers = status, message, headers or {}
        super().__init__(message)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise HttpError(400, "Send a JSON object.")
    return body


Body = Annotated[dict[str, Any], Depends(_body)]


def make_app(study: Study, password: str | None, port: int) -> FastAPI:
    """Return the web application, which asks for `password` unless it is None.

    `port` is in the cookie's name, as a browser keeps one set of cookies for all ports of a host.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _guard(app)
    for path, (name, kind) in FILES.items():
        content = (PAGES / name).read_bytes()
        app.add_api_route(path, _file(content, kind), methods=["GET"])
    visitors = _Visitors(study, password, f"ledpo_annotate_{port}")
    _add_entrance(app, visitors)
    _add_judging(app, visitors)
    _add_export(app, visitors)
    return app


def _guard(app: FastAPI) -> None:
    """Refuse what does not come from the page itself, and answer errors with a status and a message."""

    @app.middleware("http")
    async def guard(request: Request, go_on: Any) -> Response:
        refused = objection(request.method, request.headers)
        response = _error(*refused) if refused else await go_on(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(HttpError)
    async def answer(request: Request, error: HttpError) -> Response:
        return _error(error.status, error.message, error.headers)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        return _error(409 if isinstance(error, Stale) else 400, str(error))

    @app.exception_handler(OSError)
    async def not_written(request: Request, error: OSError) -> Response:
        reason = error.strerror or type(error).__name__
        logging.getLogger("uvicorn.error").error("Nothing was saved: %s", error)
        return _error(507, f"It could not be saved ({reason}). Tell whoever runs this page, then try again.")


class _Visitors:
    """Who is there: sessions by the cookie of a request, and the door where there is a password."""

    def __init__(self, study: Study, password: str | None, cookie: str) -> None:
        self.study, self.cookie = study, cookie
        self.sessions, self.door = Sessions(), Door(password) if password is not None else None

    def session_of(self, request: Request) -> Session | None:
        return self.sessions.find(request.cookies.get(self.cookie))

    def annotator_of(self, request: Request) -> str:
        session = self.session_of(request)
        if session is None or session.annotator is None:
            raise HttpError(401, LOST)
        return session.annotator

    def with_session(self, value: dict[str, Any]) -> tuple[Response, Session]:
        """Return a response that starts a new session."""
        response, id_ = JSONResponse(value), self.sessions.start()
        response.set_cookie(self.cookie, id_, httponly=True, samesite="strict", path="/")
        return response, self.sessions.find(id_)

    def state_of(self, session: Session | None) -> dict[str, Any]:
        if session is None and self.door is not None:
            return {"stage": "login"}
        if session is None or session.annotator is None:
            return {"stage": "name", "names": list(self.study.allowed)}
        return self.study.view(session.annotator)


def _add_entrance(app: FastAPI, visitors: _Visitors) -> None:
    """Add what a visitor calls to come in, to say a name, and to leave."""
    study, door = visitors.study, visitors.door

    @app.get("/api/state")
    def state(request: Request) -> Response:
        return JSONResponse(visitors.state_of(visitors.session_of(request)))

    @app.post("/api/login")
    async def login(body: Body) -> Response:
        # Not in a thread of its own: of passwords sent at the same time, the second waits like all others.
        if door is None:
            raise HttpError(400, "No password is needed here. Reload the page.")
        if wait := math.ceil(door.wait()):
            message = f"Wrong passwords were given before: try again in {wait} second{'' if wait == 1 else 's'}."
            raise HttpError(429, message, {"Retry-After": str(wait)})
        if not door.opens(body.get("password")):
            raise HttpError(403, "This is not the password.")
        return visitors.with_session(visitors.state_of(Session()))[0]

    @app.post("/api/annotator")
    def annotator(request: Request, body: Body) -> Response:
        session = visitors.session_of(request)
        if session is None and door is not None:
            raise HttpError(401, LOST)
        name = study.name_of(body.get("name"))
        if session is None:
            response, session = visitors.with_session(study.view(name))
        else:
            response = JSONResponse(study.view(name))
        session.annotator = name
        return response

    @app.post("/api/leave")
    def leave(request: Request, body: Body) -> Response:
        visitors.sessions.end(request.cookies.get(visitors.cookie))
        response = JSONResponse(visitors.state_of(None))
        response.delete_cookie(visitors.cookie, httponly=True, samesite="strict", path="/")
        return response


def _add_judging(app: FastAPI, visitors: _Visitors) -> None:
    """Add what an annotator calls to judge a pair, and to take the last verdict back."""
    study = visitors.study

    @app.post("/api/verdict")
    def verdict(request: Request, body: Body) -> Response:
        name = visitors.annotator_of(request)
        return JSONResponse(study.judge(name, body.get("token"), body.get("choice"), body.get("seconds")))

    @app.post("/api/undo")
    def undo(request: Request, body: Body) -> Response:
        return JSONResponse(study.undo(visitors.annotator_of(request), body.get("token")))


def _add_export(app: FastAPI, visitors: _Visitors) -> None:
    """Add the files of ratings, for those who have judged all of their pairs."""
    study = visitors.study

    @app.get("/export/{name}")
    def export(name: str, request: Request) -> Response:
        view = study.view(visitors.annotator_of(request))
        if view["stage"] != "done":
            # It says which model wrote what.
            left = view["total"] - view["done"]
            raise HttpError(403, f"You have {left} pairs to judge: the export comes after the last one.")
        state = study.store.read()
        if name == "ratings.csv":
            text, kind = csv_text(ratings(study.items, state)), "text/csv; charset=utf-8"
        elif name == "ratings.json":
            text, kind = json_text(study.items, state), "application/json"
        else:
            raise HttpError(404, "There are ratings.csv and ratings.json.")
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(text.encode(), media_type=kind, headers=headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=headers)


def _file(content: bytes, kind: str) -> Any:
    async def serve() -> Response:
        return Response(content, media_type=kind)

    return serve


def listen(port: int | None) -> socket.socket:
    """Return a socket that listens on 127.0.0.1, at a free port if none is given.

    Raises:
        OSError: the port is taken, or not allowed.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOSTS[0], port or 0))
        listening.listen(64)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"port is {port}, which cannot be used ({reason}). Name another one, or leave it out for a free one."
        ) from None
    return listening


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until the process is told to stop (Ctrl-C or SIGTERM)."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,  # nobody in front of it is trusted to say who asks
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after it has shut down
        uvicorn.Server(config).run(sockets=[listening])
