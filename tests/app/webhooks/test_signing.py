"""What we sign, receivers can verify with the reference implementation."""

import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.webhooks.signing import new_secret, signature_headers

BODY = b'{"type":"job.succeeded"}'


def test_the_reference_implementation_signs_the_same() -> None:
    secret, now = new_secret(), datetime.now(UTC)
    headers = signature_headers("evt_1", int(now.timestamp()), BODY, [secret])
    assert headers["webhook-signature"] == Webhook(secret).sign("evt_1", now, BODY.decode())


def test_while_a_secret_is_rotated_both_verify() -> None:
    new, old = new_secret(), new_secret()
    headers = signature_headers("evt_1", int(time.time()), BODY, [new, old])
    for secret in (new, old):
        assert Webhook(secret).verify(BODY, headers) == {"type": "job.succeeded"}
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(BODY, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(BODY + b" ", headers)


def test_a_secret_holds_256_random_bits() -> None:
    secret = new_secret()
    assert secret.startswith("whsec_")
    assert len(secret) == len("whsec_") + 44
    assert secret != new_secret()
