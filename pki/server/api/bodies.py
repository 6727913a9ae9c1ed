"""Request bodies: never more bytes than the cap, never longer than a deadline, JSON without surprises."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.requests import ClientDisconnect, Request

from pki.core.errors import KeymailboxError, MalformedError, TooLargeError, UsageError

_DEADLINE_SECONDS = 30
CMS = "application/cms"
PKCS10 = "application/pkcs10"
JSON = "application/json"


class Message(BaseModel):
    """A JSON object: no unknown keys, no conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


AnyId = Annotated[str, Field(max_length=64)]
"""An id among several: one that names nothing, or cannot, is told for itself and fails no other."""

M = TypeVar("M", bound=Message)


def unb64(text: str) -> bytes | None:
    """Return what base64 in JSON stands for (RFC 4648 §4); None where it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _decode(value: Any) -> bytes:
    decoded = unb64(value) if isinstance(value, str) else None
    if decoded is None:
        raise ValueError("must be base64 text (RFC 4648 §4)")
    return decoded


_SCHEMA = WithJsonSchema({"type": "string", "contentEncoding": "base64"})
Base64 = Annotated[bytes, BeforeValidator(_decode), _SCHEMA]
Base64Text = Annotated[str, _SCHEMA]
"""The same where each of several is looked at by itself, so that a bad one does not fail the others."""


def b64(data: bytes) -> str:
    """Return bytes as they stand in JSON (RFC 4648 §4)."""
    return base64.b64encode(data).decode()


async def read(request: Request, cap: int) -> bytes:
    """Return the body; TooLargeError at once where its declared length is past ``cap``, else when it gets there."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > cap:
        raise _too_large(cap)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > cap:
                    raise _too_large(cap)
                parts.append(part)
    except TimeoutError:
        raise UsageError(f"The body did not arrive within {_DEADLINE_SECONDS} s") from None
    except ClientDisconnect:
        raise UsageError("The body did not arrive") from None
    return b"".join(parts)


def expect(request: Request, media_type: str) -> None:
    """Raise UsageError unless the body is declared as ``media_type``."""
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != media_type:
        raise UsageError(f"The body has to be {media_type}", on=f"content-type: {declared[:80] or 'none'}")


def parse(request: Request, body: bytes, message: type[M]) -> M:
    """Return the JSON body as a message; MalformedError when it is no JSON, UsageError when it is another message."""
    expect(request, JSON)
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        raise _unfitting(error, "") from None
    except RecursionError:
        raise MalformedError("The body is not JSON") from None


def fitting(value: object, message: type[M], place: str) -> M:
    """Return a part of a JSON body, at ``place``, as a message; UsageError when it is another."""
    try:
        return message.model_validate(value)
    except ValidationError as error:
        raise _unfitting(error, place) from None


def _unfitting(error: ValidationError, place: str) -> KeymailboxError:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return MalformedError("The body is not JSON")
    reason = str(first["msg"]).removeprefix("Value error, ")
    places = [place] if place else []
    return UsageError(f"The body does not fit: {reason}", on=".".join([*places, *map(str, first["loc"])]))


def takes(message: type[Message]) -> dict[str, Any]:
    """Describe a JSON body for OpenAPI; routes read it themselves, after the signature was checked."""
    schema = message.model_json_schema()
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def takes_binary(media_type: str, description: str) -> dict[str, Any]:
    """Describe a binary body for OpenAPI 3.1."""
    return {"requestBody": {"required": True, "description": description, "content": {media_type: {}}}}


def _too_large(cap: int) -> TooLargeError:
    return TooLargeError(f"The body has more than {cap} bytes")
