"""Objects in a bucket of an S3 server, through boto3.

A put that was sent again because its answer was lost finds its own object: each carries a mark that only its writer
knows. All sums are sha256 and checked by the server, part by part.
"""

import hashlib
import math
import secrets
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from app.storage.contract import CHUNK, MOST_PARTS, NotStored, SignedRequest, StorageFull, StorageUnavailable, checked

PART = 16 * CHUNK
"""Bytes of one part of a large file; a file that is smaller goes in one request."""
_AT_ONCE = 4
"""Parts of one file that are under way at the same time."""
_ATTEMPTS = 4
_LARGEST_COPY = 5 * 1024**3
"""Bytes that an S3 server copies in one request."""
_DOWNLOAD_SECONDS = 300
_UPLOAD_SECONDS = 900
_TYPE = "application/octet-stream"
_MARK = "put"

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_FULL = frozenset({"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "ServiceQuotaExceeded"})
_BROKEN = (HTTPClientError, IncompleteReadError, HTTPError)


class S3Store:
    """Objects in a bucket of an S3 server. Threads may share it."""

    def __init__(
        self,
        bucket: str,
        *,
        endpoint_url: str | None,
        public_endpoint_url: str | None,
        region: str,
        access_key_id: str | None,
        secret_access_key: str | None,
        timeout: float = 20,
        proxied: bool = False,
    ) -> None:
        self._bucket = bucket
        self._proxied = proxied
        session = boto3.session.Session(
            aws_access_key_id=access_key_id, aws_secret_access_key=secret_access_key, region_name=region
        )
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # Other sums than those that are asked for are unknown to many servers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(timeout, 5),
            read_timeout=timeout,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=32,
        )
        self._s3 = session.client("s3", endpoint_url=endpoint_url, config=config)
        public = public_endpoint_url or endpoint_url
        self._signer = self._s3 if public == endpoint_url else session.client("s3", endpoint_url=public, config=config)

    def put(self, key: str, source: Path) -> None:
        """Store a file, whole or not at all. Raises StorageFull, and FileExistsError where the key is taken."""
        with _explained(checked(key)):
            if source.stat().st_size > PART:
                self._put_in_parts(key, source)
            else:
                self._put_at_once(key, source.read_bytes())

    def size(self, key: str) -> int:
        """Say how many bytes an object has."""
        with _explained(key):
            size: int = self._s3.head_object(Bucket=self._bucket, Key=checked(key))["ContentLength"]
        return size

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Read the bytes from `start` to before `stop`, in chunks. What breaks is taken up again where it broke."""
        failures = 0
        while stop is None or start < stop:
            try:
                for chunk in self._read_once(key, start, stop):
                    start += len(chunk)
                    failures = 0
                    yield chunk
            except _BROKEN as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise StorageUnavailable(f"{key}: {error}") from error
                time.sleep(0.1 * 2**failures)
            else:
                return

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Go through the keys under a key, or all of them, in their order."""
        under = f"{checked(prefix)}/" if prefix else ""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=under)
        with _explained(prefix):
            for page in pages:
                yield from (each["Key"] for each in page.get("Contents", ()))

    def copy(self, key: str, target: str) -> None:
        """Store the same content under a second key, which nothing else is stored under."""
        checked(target)
        source = {"Bucket": self._bucket, "Key": checked(key)}
        with _explained(key):
            if self.size(key) <= _LARGEST_COPY:
                self._s3.copy_object(Bucket=self._bucket, Key=target, CopySource=source)
            else:
                self._s3.copy(source, self._bucket, target)

    def delete(self, key: str) -> None:
        """Delete the object of this key, and all that are under it. What is not there is no error."""
        with _explained(key):
            self._s3.delete_object(Bucket=self._bucket, Key=checked(key))
            while batch := [{"Key": each} for each, _ in zip(self.keys(key), range(1000), strict=False)]:
                answer = self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                for refused in answer.get("Errors", ()):
                    raise StorageUnavailable(f"{refused['Key']}: {refused.get('Message', refused.get('Code'))}")

    def begin(self, key: str) -> str:
        """Begin an object that comes in parts; give the name under which they are gathered."""
        with _explained(key):
            return self._begin(key, secrets.token_hex(16))

    def put_part(self, key: str, gathering: str, number: int, source: Path) -> None:
        """Store a part, the first of which has number 1; it takes the place of an earlier one. Raises StorageFull."""
        with _explained(key), source.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
            content.seek(0)
            self._s3.upload_part(
                **self._gathering(key, gathering), PartNumber=number, Body=content, ChecksumSHA256=_base64(digest)
            )

    def parts(self, key: str, gathering: str) -> Mapping[int, int]:
        """Say which parts are there, and how many bytes each has; none where there is no such gathering."""
        with _explained(key):
            return {part["PartNumber"]: part["Size"] for part in self._parts(key, gathering)}

    def assemble(self, key: str, gathering: str) -> None:
        """Make the object out of its parts, in their order. Raises StorageFull, NotStored where there are none, and
        FileExistsError where the key is taken by anything but this gathering."""
        with _explained(key):
            found = self._parts(key, gathering)
            if not found:
                self.size(key)
                return
            etags = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in found]
            self._complete(key, gathering, etags)

    def abandon(self, key: str, gathering: str) -> None:
        """Drop a gathering and its parts. One that is not there is no error."""
        with _explained(key):
            try:
                self._s3.abort_multipart_upload(**self._gathering(key, gathering))
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise

    def download_request(self, key: str, *, file_name: str) -> SignedRequest | None:
        """Let a client fetch an object from the store itself; None where it can only come through the API."""
        disposition = f'attachment; filename="{file_name}"'
        return self._sign("get_object", _DOWNLOAD_SECONDS, Key=checked(key), ResponseContentDisposition=disposition)

    def upload_request(self, key: str, *, size: int, sha256: str) -> SignedRequest | None:
        """Let a client put exactly one content under a free key; None where it can only go through the API."""
        return self._sign(
            "put_object",
            _UPLOAD_SECONDS,
            {
                "Content-Length": str(size),
                "Content-Type": _TYPE,
                "If-None-Match": "*",
                "x-amz-checksum-sha256": _base64(bytes.fromhex(sha256)),
            },
            Key=checked(key),
            ContentLength=size,
            ContentType=_TYPE,
            IfNoneMatch="*",
            ChecksumSHA256=_base64(bytes.fromhex(sha256)),
        )

    def part_request(self, key: str, gathering: str, number: int, *, size: int, sha256: str) -> SignedRequest | None:
        """Let a client put exactly one content as a part; None where it can only go through the API."""
        return self._sign(
            "upload_part",
            _UPLOAD_SECONDS,
            {"Content-Length": str(size), "x-amz-checksum-sha256": _base64(bytes.fromhex(sha256))},
            Key=checked(key),
            UploadId=gathering,
            PartNumber=number,
            ContentLength=size,
            ChecksumSHA256=_base64(bytes.fromhex(sha256)),
        )

    def close(self) -> None:
        """Let go of connections."""
        self._s3.close()
        self._signer.close()

    def _put_at_once(self, key: str, content: bytes) -> None:
        mark = secrets.token_hex(16)
        with self._unless_ours(key, mark):
            self._s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ContentType=_TYPE,
                ChecksumSHA256=_base64(hashlib.sha256(content).digest()),
                IfNoneMatch="*",
                Metadata={_MARK: mark},
            )

    def _put_in_parts(self, key: str, source: Path) -> None:
        size = source.stat().st_size
        part = max(PART, math.ceil(size / MOST_PARTS))
        mark = secrets.token_hex(16)
        gathering = self._begin(key, mark)
        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                send = self._part_sender(key, gathering, source, part)
                etags = list(pool.map(send, range(1, math.ceil(size / part) + 1)))
            with self._unless_ours(key, mark):
                self._complete(key, gathering, etags)
        except BaseException:
            self._drop(key, gathering)
            raise

    def _part_sender(self, key: str, gathering: str, source: Path, part: int) -> Callable[[int], dict[str, Any]]:
        def send(number: int) -> dict[str, Any]:
            with source.open("rb") as file:
                file.seek((number - 1) * part)
                content = file.read(part)
            answer = self._s3.upload_part(
                **self._gathering(key, gathering),
                PartNumber=number,
                Body=content,
                ChecksumSHA256=_base64(hashlib.sha256(content).digest()),
            )
            return {"PartNumber": number, "ETag": answer["ETag"]}

        return send

    def _begin(self, key: str, mark: str) -> str:
        answer = self._s3.create_multipart_upload(
            Bucket=self._bucket, Key=checked(key), ContentType=_TYPE, Metadata={_MARK: mark}
        )
        gathering: str = answer["UploadId"]
        return gathering

    def _complete(self, key: str, gathering: str, etags: list[dict[str, Any]]) -> None:
        self._s3.complete_multipart_upload(
            **self._gathering(key, gathering), MultipartUpload={"Parts": etags}, IfNoneMatch="*"
        )

    def _drop(self, key: str, gathering: str) -> None:
        try:
            self._s3.abort_multipart_upload(**self._gathering(key, gathering))
        except (BotoCoreError, ClientError):
            # What came before says what is wrong; a rule of the bucket or a sweep removes the rest.
            return

    def _gathering(self, key: str, gathering: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": checked(key), "UploadId": gathering}

    def _parts(self, key: str, gathering: str) -> list[dict[str, Any]]:
        pages = self._s3.get_paginator("list_parts").paginate(**self._gathering(key, gathering))
        try:
            return [part for page in pages for part in page.get("Parts", ())]
        except ClientError as error:
            if _code(error) in _ABSENT:
                return []
            raise

    def _read_once(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        last = "" if stop is None else stop - 1
        # A range of an empty object, or of nothing at the end of any, is an error to S3.
        wanted = {"Range": f"bytes={start}-{last}"} if start or stop else {}
        with _explained(key):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=checked(key), **wanted)
            except ClientError as error:
                if _code(error) == "InvalidRange" and stop is None:
                    return
                raise
        with closing(answer["Body"]) as body:
            yield from body.iter_chunks(CHUNK)

    def _sign(
        self, operation: str, seconds: int, headers: Mapping[str, str] | None = None, **parameters: Any
    ) -> SignedRequest | None:
        if self._proxied:
            return None
        parameters |= {"Bucket": self._bucket}
        with _explained(parameters["Key"]):
            url = self._signer.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds)
        return SignedRequest(url, headers or {})

    @contextmanager
    def _unless_ours(self, key: str, mark: str) -> Iterator[None]:
        """Take it for success where the key is taken by what was to be put there."""
        try:
            yield
        except ClientError as error:
            if _code(error) not in _TAKEN | _ABSENT:
                raise
            found = self._s3.head_object(Bucket=self._bucket, Key=key)
            if found["Metadata"].get(_MARK) != mark:
                raise


@contextmanager
def _explained(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if _code(error) in _TAKEN:
            raise FileExistsError(key) from error
        kind = NotStored if _code(error) in _ABSENT else StorageFull if _code(error) in _FULL else StorageUnavailable
        raise kind(f"{key}: {error.response['Error'].get('Message') or _code(error)}") from error
    except BotoCoreError as error:
        raise StorageUnavailable(f"{key}: {error}") from error
    except FileNotFoundError as error:  # the file that was to be stored
        raise NotStored(f"{key}: {error.strerror}") from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()
