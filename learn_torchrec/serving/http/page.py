"""The page for people: three files, served as they are."""

from importlib import resources

from fastapi import FastAPI, HTTPException, Response

_KINDS = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_FOLDER = "page"


def add_page(app: FastAPI) -> None:
    """Add the page at `/`, which asks nobody but this server."""
    folder = resources.files(__package__) / _FOLDER
    files = {name: (folder / name).read_bytes() for name in _KINDS}

    async def page() -> Response:
        return _file("page.html")

    async def asset(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "no such file")
        return _file(name)

    def _file(name: str) -> Response:
        headers = {"cache-control": "no-cache"}
        return Response(files[name], media_type=_KINDS[name], headers=headers)

    hidden = {"include_in_schema": False, "response_class": Response}
    app.add_api_route("/", page, methods=["GET"], **hidden)  # type: ignore[arg-type]
    app.add_api_route("/page/{name}", asset, methods=["GET"], **hidden)  # type: ignore[arg-type]
