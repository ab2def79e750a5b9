"""Routes without a key: probes, the version, and the pages that explain routes and problems."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, PlainTextResponse

from app import schemas
from app.http.dependencies import TheService
from app.http.problems import PROBLEMS, DatabaseUnavailable, NotFound, NotReady, declare
from app.jobs import waiting

router = APIRouter(tags=["service"])


@router.get("/")
async def get_index() -> schemas.Index:
    """Get the entry points of the service."""
    return schemas.Index(service="Temper", docs="/docs", openapi="/openapi.json", ready="/readyz", version="/version")


@router.get("/livez")
async def live() -> schemas.Health:
    """Check that the process answers."""
    return schemas.Health(status="ok")


@router.get("/readyz", responses=declare(NotReady, DatabaseUnavailable))
def ready(service: TheService) -> schemas.Readiness:
    """Check that the database has this version's schema and can be written, and tell of work that waits for a worker
    which is not there."""
    if complaint := service.database.schema().complaint:
        raise NotReady(complaint, headers={"Retry-After": "5"})
    service.database.try_to_write()
    with service.database.reading() as session:
        return schemas.Readiness(status="ok", details=list(waiting.unserved(session)))


@router.get("/version")
def get_version() -> schemas.Version:
    """Get the version of Temper."""
    try:
        installed = version("temper")
    except PackageNotFoundError:
        installed = "source"
    return schemas.Version(version=installed, api="v1")


@router.get("/problems/{code}", response_class=PlainTextResponse, responses=declare(NotFound))
def explain_problem(
    code: Annotated[str, Path(description="The `code` of a problem.")],
) -> PlainTextResponse:
    """Get the explanation of a problem code."""
    problem = PROBLEMS.get(code)
    if problem is None:
        raise NotFound(f"there is no problem {code!r}; known: {', '.join(PROBLEMS)}")
    return PlainTextResponse(f"{problem.code} (HTTP {problem.status})\n\n{problem.explanation()}\n")


@router.get("/docs", include_in_schema=False)
def show_documentation(request: Request) -> HTMLResponse:
    """Show the interactive documentation, which loads nothing from another host."""
    root = request.scope.get("root_path", "")
    return get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Temper",
        swagger_js_url=f"{root}/swagger/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/swagger/swagger-ui.css",
        swagger_favicon_url=f"{root}/swagger/favicon-32x32.png",
        swagger_ui_parameters={
            "docExpansion": "none",
            "filter": True,
            "tryItOutEnabled": True,
            "displayRequestDuration": True,
        },
    )
