"""Objects in a bucket of an S3 server, through boto3.

Each object carries a random mark that only its writer knows: a put that boto3 repeats because the answer was lost
recognises its own object by it. The server checks the sha256 of every request and part.
"""

import hashlib
import math
import secrets
import time
from base64 import b64encode
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError
from urllib3.exceptions import HTTPError

from app.storage.contract import CHUNK, MOST_PARTS, NotStored, SignedRequest, StorageFull, StorageUnavailable, checked

PART = 16 * CHUNK
"""Bytes of one part of a large file; a smaller file is sent in one request."""
_CONCURRENT_PARTS = 4
"""Parts of one file that are sent at the same time."""
_ATTEMPTS = 4
_LARGEST_COPY = 5 * 1024**3
"""Largest object in bytes that an S3 server copies in one request."""
_DOWNLOAD_SECONDS = 300
_UPLOAD_SECONDS = 900
_TYPE = "application/octet-stream"
_MARK = "put"

_ABSENT = frozenset({"404", "NoSuchKey", "NoSuchUpload"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_FULL = frozenset({"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "ServiceQuotaExceeded"})
_BROKEN = (HTTPClientError, IncompleteReadError, HTTPError)


class S3Store:
    """An `ObjectStore` in a bucket of an S3 server. Threads may share it."""

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
        session = boto3.session.Session(
            aws_access_key_id=access_key_id, aws_secret_access_key=secret_access_key, region_name=region
        )
        config = Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            # Many servers do not know the other checksums, which boto3 sends by default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=min(timeout, 5),
            read_timeout=timeout,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=32,
        )
        self._s3 = session.client("s3", endpoint_url=endpoint_url, config=config)
        public = public_endpoint_url or endpoint_url
        self._public = self._s3 if public == endpoint_url else session.client("s3", endpoint_url=public, config=config)
        self.multipart = S3Multipart(self._s3, bucket)
        self.presigner = None if proxied else S3Presigner(self._public, bucket)

    def put(self, key: str, source: Path) -> None:
        with _translated_errors(checked(key)):
            if source.stat().st_size > PART:
                self.multipart.put(key, source)
            else:
                self._put_in_one_request(key, source.read_bytes())

    def size(self, key: str) -> int:
        with _translated_errors(key):
            size: int = self._s3.head_object(Bucket=self._bucket, Key=checked(key))["ContentLength"]
        return size

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Generator[bytes]:
        # Not tenacity: it calls a function again, and this goes on with the bytes that are still to come.
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

    def keys(self, prefix: str = "", *, after: str = "") -> Iterator[str]:
        under = f"{checked(prefix)}/" if prefix else ""
        from_there = {"StartAfter": after} if after else {}
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=under, **from_there)
        with _translated_errors(prefix):
            for page in pages:
                yield from (each["Key"] for each in page.get("Contents", ()))

    def copy(self, key: str, target: str) -> None:
        checked(target)
        source = {"Bucket": self._bucket, "Key": checked(key)}
        with _translated_errors(key):
            if self.size(key) <= _LARGEST_COPY:
                self._s3.copy_object(Bucket=self._bucket, Key=target, CopySource=source)
            else:
                self._s3.copy(source, self._bucket, target)

    def delete(self, key: str) -> None:
        with _translated_errors(key):
            self._s3.delete_object(Bucket=self._bucket, Key=checked(key))
            while batch := [{"Key": each} for each, _ in zip(self.keys(key), range(1000), strict=False)]:
                answer = self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": batch, "Quiet": True})
                for refused in answer.get("Errors", ()):
                    raise StorageUnavailable(f"{refused['Key']}: {refused.get('Message', refused.get('Code'))}")

    def close(self) -> None:
        self._s3.close()
        self._public.close()

    def _put_in_one_request(self, key: str, content: bytes) -> None:
        mark = secrets.token_hex(16)
        with _unless_ours(self._s3, self._bucket, key, mark):
            self._s3.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=content,
                ContentType=_TYPE,
                ChecksumSHA256=_base64(hashlib.sha256(content).digest()),
                IfNoneMatch="*",
                Metadata={_MARK: mark},
            )

    def _read_once(self, key: str, start: int, stop: int | None) -> Iterator[bytes]:
        last = "" if stop is None else stop - 1
        # S3 refuses a range of an empty object, and an empty range at the end of any object.
        wanted = {"Range": f"bytes={start}-{last}"} if start or stop else {}
        with _translated_errors(key):
            try:
                answer = self._s3.get_object(Bucket=self._bucket, Key=checked(key), **wanted)
            except ClientError as error:
                if _code(error) == "InvalidRange" and stop is None:
                    return
                raise
        with closing(answer["Body"]) as body:
            yield from body.iter_chunks(CHUNK)


class S3Multipart:
    """`Multipart` of an `S3Store`."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._s3 = client
        self._bucket = bucket

    def create(self, key: str) -> str:
        with _translated_errors(key):
            return self._create(key, secrets.token_hex(16))

    def upload_part(self, key: str, multipart_id: str, number: int, source: Path) -> None:
        with _translated_errors(key), source.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").digest()
            content.seek(0)
            self._upload_part(key, multipart_id, number, content, digest)

    def list_parts(self, key: str, multipart_id: str) -> Mapping[int, int]:
        with _translated_errors(key):
            return {number: part["Size"] for number, part in self._parts(key, multipart_id).items()}

    def complete(self, key: str, multipart_id: str) -> None:
        with _translated_errors(key):
            if found := self._parts(key, multipart_id):
                etags = [{"PartNumber": number, "ETag": part["ETag"]} for number, part in sorted(found.items())]
                try:
                    self._complete(key, multipart_id, etags)
                except ClientError as error:
                    # boto3 repeats a request whose answer was lost: where that had been done, there are no parts.
                    if _code(error) not in _TAKEN | _ABSENT or self._parts(key, multipart_id):
                        raise
                else:
                    return
            self._s3.head_object(Bucket=self._bucket, Key=checked(key))

    def abort(self, key: str, multipart_id: str) -> None:
        with _translated_errors(key):
            try:
                self._s3.abort_multipart_upload(**self._names(key, multipart_id))
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise

    def put(self, key: str, source: Path) -> None:
        """Store a large file. Raises the errors of boto3."""
        size = source.stat().st_size
        part_size = max(PART, math.ceil(size / MOST_PARTS))
        mark = secrets.token_hex(16)
        multipart_id = self._create(key, mark)

        def send(number: int) -> dict[str, Any]:
            with source.open("rb") as file:
                file.seek((number - 1) * part_size)
                content = file.read(part_size)
            return self._upload_part(key, multipart_id, number, content, hashlib.sha256(content).digest())

        try:
            with ThreadPoolExecutor(_CONCURRENT_PARTS) as pool:
                etags = list(pool.map(send, range(1, math.ceil(size / part_size) + 1)))
            with _unless_ours(self._s3, self._bucket, key, mark):
                self._complete(key, multipart_id, etags)
        except BaseException:
            # The first error is the one to report; a rule of the bucket or the garbage collection removes the parts.
            with suppress(BotoCoreError, ClientError):
                self._s3.abort_multipart_upload(**self._names(key, multipart_id))
            raise

    def _create(self, key: str, mark: str) -> str:
        answer = self._s3.create_multipart_upload(
            Bucket=self._bucket, Key=checked(key), ContentType=_TYPE, Metadata={_MARK: mark}
        )
        multipart_id: str = answer["UploadId"]
        return multipart_id

    def _upload_part(
        self, key: str, multipart_id: str, number: int, content: bytes | IO[bytes], digest: bytes
    ) -> dict[str, Any]:
        names = self._names(key, multipart_id)
        answer = self._s3.upload_part(**names, PartNumber=number, Body=content, ChecksumSHA256=_base64(digest))
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _parts(self, key: str, multipart_id: str) -> dict[int, dict[str, Any]]:
        """Return the latest upload of each part. SeaweedFS lists the earlier ones as well, and an object that is made
        of two uploads of one part loses its bytes."""
        pages = self._s3.get_paginator("list_parts").paginate(**self._names(key, multipart_id))
        try:
            found = [part for page in pages for part in page.get("Parts", ())]
        except ClientError as error:
            if _code(error) in _ABSENT:
                return {}
            raise
        return {part["PartNumber"]: part for part in sorted(found, key=itemgetter("LastModified"))}

    def _complete(self, key: str, multipart_id: str, etags: list[dict[str, Any]]) -> None:
        names = self._names(key, multipart_id)
        self._s3.complete_multipart_upload(**names, MultipartUpload={"Parts": etags}, IfNoneMatch="*")

    def _names(self, key: str, multipart_id: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": checked(key), "UploadId": multipart_id}


class S3Presigner:
    """`Presigner` of an `S3Store`. `client` has the address by which the clients reach the server."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._s3 = client
        self._bucket = bucket

    def download(self, key: str, *, file_name: str) -> SignedRequest:
        disposition = f'attachment; filename="{file_name}"'
        return self._sign("get_object", key, _DOWNLOAD_SECONDS, {}, ResponseContentDisposition=disposition)

    def upload(self, key: str, *, size: int, sha256: str) -> SignedRequest:
        checksum = _base64(bytes.fromhex(sha256))
        return self._sign(
            "put_object",
            key,
            _UPLOAD_SECONDS,
            {
                "Content-Length": str(size),
                "Content-Type": _TYPE,
                "If-None-Match": "*",
                "x-amz-checksum-sha256": checksum,
            },
            ContentLength=size,
            ContentType=_TYPE,
            IfNoneMatch="*",
            ChecksumSHA256=checksum,
        )

    def upload_part(self, key: str, multipart_id: str, number: int, *, size: int, sha256: str) -> SignedRequest:
        checksum = _base64(bytes.fromhex(sha256))
        return self._sign(
            "upload_part",
            key,
            _UPLOAD_SECONDS,
            {"Content-Length": str(size), "x-amz-checksum-sha256": checksum},
            UploadId=multipart_id,
            PartNumber=number,
            ContentLength=size,
            ChecksumSHA256=checksum,
        )

    def _sign(
        self, operation: str, key: str, seconds: int, headers: Mapping[str, str], **parameters: Any
    ) -> SignedRequest:
        parameters |= {"Bucket": self._bucket, "Key": checked(key)}
        with _translated_errors(key):
            url = self._s3.generate_presigned_url(operation, Params=parameters, ExpiresIn=seconds)
        return SignedRequest(url, headers)


@contextmanager
def _unless_ours(client: Any, bucket: str, key: str, mark: str) -> Iterator[None]:
    """Ignore the error where the key is taken by the object that carries this mark."""
    try:
        yield
    except ClientError as error:
        if _code(error) not in _TAKEN | _ABSENT:
            raise
        found = client.head_object(Bucket=bucket, Key=key)
        if found["Metadata"].get(_MARK) != mark:
            raise


@contextmanager
def _translated_errors(key: str) -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        if _code(error) in _TAKEN:
            raise FileExistsError(key) from error
        kind = NotStored if _code(error) in _ABSENT else StorageFull if _code(error) in _FULL else StorageUnavailable
        raise kind(f"{key}: {error.response['Error'].get('Message') or _code(error)}") from error
    except BotoCoreError as error:
        raise StorageUnavailable(f"{key}: {error}") from error
    except FileNotFoundError as error:  # the file to store
        raise NotStored(f"{key}: {error.strerror}") from error


def _code(error: ClientError) -> str:
    return str(error.response["Error"].get("Code"))


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()
