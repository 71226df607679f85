"""The guards of the metrics page: the clients that may read it."""

from __future__ import annotations

import hmac
import logging
from base64 import b64decode, b64encode
from http import HTTPStatus
from ipaddress import IPv4Address, IPv6Address, ip_address

from ..exposition import Response, Scrape, plain
from ..options import Options
from ..process import log
from ..process.interruption import let_through

BASIC = 'Basic realm="metrics", charset="UTF-8"'
_ASK = ("WWW-Authenticate", BASIC)
FOR_PEOPLE = "this page needs a user and a password: those of PDC_METRICS_BASIC_AUTH, or any user and PDC_METRICS_TOKEN"


class Access:
    """The networks and the credentials that a scrape needs. It needs both where both are set, but one of two credentials."""

    def __init__(self, options: Options) -> None:
        self._networks = options.metrics_networks
        accepted = {}
        challenges = []
        if (credentials := options.metrics_basic_auth) is not None:
            accepted["Basic <user:password in Base64>"] = f"Basic {b64encode(_bytes(credentials)).decode()}"
            challenges.append(BASIC)
        if options.metrics_token is not None:
            accepted["Bearer <token>"] = f"Bearer {options.metrics_token}"
            challenges.append("Bearer")
        self._token = None if options.metrics_token is None else _bytes(options.metrics_token)
        self._accepted = [*map(_bytes, accepted.values())]
        self._needed = f"metrics need the header Authorization: {' or '.join(accepted)}"
        self._challenge = ", ".join(challenges)

    def refusal(self, scrape: Scrape, *, by_browser: bool = False) -> Response | None:
        """The answer to a client that may not read metrics, whatever its method; None for others.

        Browsers ask people for a user and a password alone: there, the token is the password of any user.
        """
        if self._networks and not self._is_near(scrape.client):
            return plain(HTTPStatus.FORBIDDEN, _reason(scrape.client))
        if not self._accepted or self._knows(scrape.authorization):
            return None
        if by_browser:
            return None if self._has_token(scrape.authorization) else plain(HTTPStatus.UNAUTHORIZED, FOR_PEOPLE, _ASK)
        return plain(HTTPStatus.UNAUTHORIZED, self._needed, ("WWW-Authenticate", self._challenge))

    def _is_near(self, client: str) -> bool:
        addresses = {_address(client), _parsed(client)} - {None}  # a network may be one of IPv4 in IPv6, too
        return any(address in network for address in addresses for network in self._networks)

    def _knows(self, authorization: str) -> bool:
        scheme, space, rest = authorization.partition(" ")
        given = f"{scheme.capitalize()}{space}{rest}"  # the case of a scheme means nothing
        sent = (_bytes(given), given.encode("latin-1", "replace"))  # servers read the bytes of a client as Latin-1
        return any(hmac.compare_digest(each, accepted) for each in sent for accepted in self._accepted)

    def _has_token(self, authorization: str) -> bool:
        """True where the password of the scheme Basic is the token."""
        scheme, _, rest = authorization.partition(" ")
        if self._token is None or scheme.lower() != "basic":
            return False
        try:
            _, _, password = b64decode(rest, validate=True).partition(b":")
        except ValueError as error:
            let_through(error)
            return False
        return hmac.compare_digest(password, self._token)


def warn_of_port(options: Options, guard: str) -> None:
    """Log that a guard of the framework does not guard PDC_METRICS_PORT, unless another one does."""
    guards = (options.metrics_networks, options.metrics_token, options.metrics_basic_auth)
    if options.metrics_port is not None and not any(guards):
        log.write(
            logging.WARNING,
            "every client may read the metrics on PDC_METRICS_PORT: %s guards only the page of the application; "
            "PDC_METRICS_NETWORKS, PDC_METRICS_TOKEN and PDC_METRICS_BASIC_AUTH guard both",
            guard,
        )


def _parsed(client: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(client)
    except ValueError as error:
        let_through(error)
        return None


def _address(client: str) -> IPv4Address | IPv6Address | None:
    """The address of a client; that of IPv4 where IPv6 carries one, and None where there is none."""
    address = _parsed(client)
    return getattr(address, "ipv4_mapped", None) or address


def _reason(client: str) -> str:
    if _address(client) is None:
        return f"PDC_METRICS_NETWORKS needs the address of the client, but the server gives {client!r}"
    return f"metrics are not for clients at {client}: it is in no network of PDC_METRICS_NETWORKS"


def _bytes(text: str) -> bytes:
    """The text in UTF-8, also where it has lone surrogates, as an environment variable may."""
    return text.encode(errors="surrogatepass")
