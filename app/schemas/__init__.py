"""Answers of the API. `core.schema.spec` defines what it accepts, `core.schema.events` what a run reports.

A name is imported from its module at first use, so that the client loads only the answers that it reads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.schemas.access import SCOPES, ApiKey, Me, NewApiKey, Project, RateLimit, Scope
    from app.schemas.answer import Answer, Listed, Page, headers, page
    from app.schemas.assets import AssetFailure, AssetStatus, Dependent, JobInput, Lineage, MadeBy, ThumbnailLink
    from app.schemas.attempts import Attempt, Outcome
    from app.schemas.catalogue import Architecture, Dataset, Method, Model, Threat
    from app.schemas.checkpoints import Checkpoint
    from app.schemas.estimates import Actual, Basis, Duration, Estimate
    from app.schemas.jobs import (
        DryRun,
        Failure,
        Job,
        Links,
        Metric,
        Metrics,
        PostedJob,
        Progress,
        Result,
        Results,
        ShardState,
        UnseenResult,
        Waiting,
    )
    from app.schemas.problems import ConflictProblem, Problem, QuotaProblem, RateLimitProblem
    from app.schemas.service import Health, Index, Readiness, Version
    from app.schemas.status import Action, Status
    from app.schemas.uploads import (
        Purpose,
        Upload,
        UploadFailure,
        UploadPart,
        UploadRequest,
        UploadRequests,
        UploadStatus,
    )
    from app.schemas.usage import QUOTAS, GroupBy, Quota, QuotaState, Usage, UsageGroup
    from app.schemas.webhooks import Delivery, DeliveryStatus, DeliveryType, DisabledReason, Webhook, WebhookWithSecret
    from app.schemas.workers import Device, Work, Worker

__all__ = [
    "QUOTAS",
    "SCOPES",
    "Action",
    "Actual",
    "Answer",
    "ApiKey",
    "Architecture",
    "AssetFailure",
    "AssetStatus",
    "Attempt",
    "Basis",
    "Checkpoint",
    "ConflictProblem",
    "Dataset",
    "Delivery",
    "DeliveryStatus",
    "DeliveryType",
    "Dependent",
    "Device",
    "DisabledReason",
    "DryRun",
    "Duration",
    "Estimate",
    "Failure",
    "GroupBy",
    "Health",
    "Index",
    "Job",
    "JobInput",
    "Lineage",
    "Links",
    "Listed",
    "MadeBy",
    "Me",
    "Method",
    "Metric",
    "Metrics",
    "Model",
    "NewApiKey",
    "Outcome",
    "Page",
    "PostedJob",
    "Problem",
    "Progress",
    "Project",
    "Purpose",
    "Quota",
    "QuotaProblem",
    "QuotaState",
    "RateLimit",
    "RateLimitProblem",
    "Readiness",
    "Result",
    "Results",
    "Scope",
    "ShardState",
    "Status",
    "Threat",
    "ThumbnailLink",
    "UnseenResult",
    "Upload",
    "UploadFailure",
    "UploadPart",
    "UploadRequest",
    "UploadRequests",
    "UploadStatus",
    "Usage",
    "UsageGroup",
    "Version",
    "Waiting",
    "Webhook",
    "WebhookWithSecret",
    "Work",
    "Worker",
    "headers",
    "page",
]

_MODULES = (
    "access",
    "answer",
    "assets",
    "attempts",
    "catalogue",
    "checkpoints",
    "estimates",
    "jobs",
    "problems",
    "service",
    "status",
    "uploads",
    "usage",
    "webhooks",
    "workers",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            if found := getattr(import_module(f"{__name__}.{module}"), name, None):
                # Python asks here only for names that the module does not have: once for each.
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
