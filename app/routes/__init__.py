"""One file per noun of the API. A route finds what it is asked about, has the noun's own module do it, and shows the
row. What is asked of the database is in such modules: `app.jobs.lifecycle`, `app.assets.assets`,
`app.webhooks.subscriptions`, `app.queries`."""

from collections.abc import Mapping

from fastapi import Response
from pydantic import BaseModel


def answer(content: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with what is known to be right. FastAPI would check it once more, in a thread of its own: that is felt in
    answers that are long or asked for often."""
    return Response(content.model_dump_json(), headers=headers, media_type="application/json")
