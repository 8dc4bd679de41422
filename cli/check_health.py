"""Health check of a coordinator, from either side of the link: does it serve devices?

Devices have no health route, because the proxy lets twelve routes through and nothing else. So this sends a fleet
request without a signature. The SuperLink behind the proxy refuses it, and that refusal shows that both are up. If the
SuperLink is down, the proxy answers 503; if the proxy is down, there is no answer.

    python -m fedstill.cli.check_health HOST:PORT [CA_FILE]
"""

from __future__ import annotations

import http.client
import ssl
import sys
from pathlib import Path

ROUTE = "/v1/fleet/get-run"
ANSWER_SECONDS = 5.0
NOBODY_BEHIND = {http.client.BAD_GATEWAY, http.client.SERVICE_UNAVAILABLE, http.client.GATEWAY_TIMEOUT}
USAGE = "usage: python -m fedstill.cli.check_health HOST:PORT [CA_FILE]"
UNHEALTHY, MISTAKE = 1, 2


def check_health(host: str, port: int, ca_file: Path | None) -> str:
    """Empty if proxy and SuperLink answer, else one line that says what is wrong. Without ``ca_file``: no TLS.

    Raises:
        OSError: ``ca_file`` cannot be read.
    """
    if ca_file is None:
        connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    else:
        trust = ssl.create_default_context(cafile=str(ca_file))
        connection = http.client.HTTPSConnection(host, port, timeout=ANSWER_SECONDS, context=trust)
    try:
        connection.request("POST", ROUTE, headers={"content-type": "application/protobuf"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{host}:{port} does not answer: {str(error) or type(error).__name__}"
    finally:
        connection.close()
    if status in NOBODY_BEHIND:
        return f"{host}:{port} answers, but the SuperLink behind it does not (HTTP {status})"
    if status == http.client.NOT_FOUND:
        return f"{host}:{port} is not a coordinator (HTTP {status})"
    return ""


def main(arguments: list[str]) -> int:
    """The command; returns its exit status."""
    host, colon, port = arguments[0].rpartition(":") if arguments else ("", "", "")
    if not 1 <= len(arguments) <= 2 or not colon or not port.isdigit():
        sys.stderr.write(f"{USAGE}\n")
        return MISTAKE
    try:
        trouble = check_health(
            host.strip("[]"), int(port), Path(arguments[1]) if len(arguments) == 2 else None
        )
    except OSError as error:
        sys.stderr.write(f"{arguments[1]}: {error.strerror or error}\n")
        return MISTAKE
    if trouble:
        sys.stderr.write(f"{trouble}\n")
        return UNHEALTHY
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
