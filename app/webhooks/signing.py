"""How receivers know that a message is ours: the signatures of the Standard Webhooks specification."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A fresh secret: `whsec_` and 256 random bits in base 64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature_headers(message_id: str, timestamp: int, body: bytes, signing_secrets: Sequence[str]) -> dict[str, str]:
    """The three headers: `v1` is the HMAC-SHA256 of `id.timestamp.body`, one for each secret that is valid now."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signatures = [hmac.new(_key(secret), signed, hashlib.sha256).digest() for secret in signing_secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(signature).decode()}" for signature in signatures),
    }


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX))
