"""Object store of checkpoints, reports and uploads: a folder of this machine, or a bucket of an S3 server."""

from app.platform.settings import Settings
from app.storage.contract import (
    MOST_PARTS,
    NotStored,
    ObjectStore,
    SignedRequest,
    StorageFull,
    StorageUnavailable,
)
from app.storage.local import LocalStore

__all__ = [
    "MOST_PARTS",
    "LocalStore",
    "NotStored",
    "ObjectStore",
    "SignedRequest",
    "StorageFull",
    "StorageUnavailable",
    "open_store",
]


S3_TIMEOUT_SECONDS = 20.0
"""Time without an answer of the S3 server after which a request is repeated."""


def open_store(settings: Settings) -> ObjectStore:
    """Open the object store that the settings name, without a connection yet."""
    if not settings.s3_bucket:
        return LocalStore(settings.objects_dir)
    # boto3 takes longer to import than everything else, and only an S3 server needs it.
    from app.storage.s3 import S3Store

    access_key_id, secret_access_key = settings.s3_access_key_id, settings.s3_secret_access_key
    return S3Store(
        settings.s3_bucket,
        endpoint_url=settings.s3_endpoint_url,
        public_endpoint_url=settings.s3_public_endpoint_url,
        region=settings.s3_region,
        access_key_id=access_key_id.get_secret_value() if access_key_id else None,
        secret_access_key=secret_access_key.get_secret_value() if secret_access_key else None,
        timeout=S3_TIMEOUT_SECONDS,
        proxied=settings.storage_proxy,
    )
