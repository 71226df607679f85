"""The page itself: one document with its style and its script, and the answer to a request for it."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs

from ..exposition import Response, Scrape
from .counts import counts

PATH = "/dashboard"
"""The path of the page below that of the metrics."""

_FOLDER = Path(__file__).parent / "browser"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def path_of(metrics_path: str | None) -> str | None:
    """The path of the page beside metrics at that path; None where these are not mounted."""
    return None if metrics_path is None else metrics_path.rstrip("/") + PATH


def answer(scrape: Scrape) -> Response:
    """Answer with the page, or with the counts that it asks for by the query ``?counts``; 503 where nobody can read them."""
    if "counts" in parse_qs(scrape.query, keep_blank_values=True):
        return scrape.answer_with(counts, {**_HEADERS, "Content-Type": "application/json"})
    body, policy = _document()
    return scrape.answer_with(
        lambda: body, {**_HEADERS, "Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
    )


@cache
def _document() -> tuple[bytes, str]:
    """The page and its Content-Security-Policy, by which it runs its own script alone, and asks its own origin alone."""
    names = ("index.html", "style.css", "script.js")
    html, style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in names)
    html = html.replace('<link rel="stylesheet" href="style.css">', f"<style>{style}</style>")
    html = html.replace('<script src="script.js"></script>', f"<script>{script}</script>")
    policy = (
        "default-src 'none'",
        f"script-src '{_digest(script)}'",
        f"style-src '{_digest(style)}'",
        "connect-src 'self'",
        "img-src data:",  # the icon
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes HTML
        "trusted-types 'none'",
    )
    return html.encode(), "; ".join(policy)


def _digest(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
