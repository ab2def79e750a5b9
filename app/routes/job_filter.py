"""The query of a list of jobs."""

from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from app import schemas
from app.http.dependencies import cursor
from app.platform.paging import Order
from core.schema.catalog import Kind


def _pair(text: str) -> str:
    key, equals, _ = text.partition("=")
    if not equals or '"' in key:
        raise PydanticCustomError("not_a_pair", "write it as metadata=key=value, with no quotes in the key")
    return text


class JobFilter(BaseModel):
    """Which jobs to list. Any other parameter is refused: a filter with a typing error would list the wrong jobs."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(default=None, description="Only jobs of this name.")
    status: schemas.Status | None = Field(default=None, description="Only jobs in this status.")
    kind: Kind | None = Field(default=None, description="Only jobs of this kind.")
    base_model: str | None = Field(default=None, description="Only jobs that start from this model.")
    dataset: str | None = Field(default=None, description="Only jobs on this data set.")
    metadata: list[Annotated[str, AfterValidator(_pair)]] = Field(
        default=[], description="Only jobs with this pair, written as key=value; repeat it for more pairs."
    )
    after: Annotated[str | None, AfterValidator(cursor("job"))] = Field(
        default=None, description="The cursor: the `last_id` of the previous page."
    )
    limit: int = Field(default=20, ge=1, le=100, description="Jobs in one page.")
    order: Order = Field(default="desc", description="desc: newest first.")

    @field_validator("metadata")
    @classmethod
    def _each_key_once(cls, pairs: list[str]) -> list[str]:
        for key, count in Counter(pair.partition("=")[0] for pair in pairs).items():
            if count > 1:
                raise PydanticCustomError("repeated", "no job has two values of {key}: give it once", {"key": key})
        return pairs
