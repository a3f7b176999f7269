"""The page that the view serves: one document that loads nothing, and may load nothing."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from edgemm.stream.sinks.server import Page

HOME = Path(__file__).parent


def page() -> Page:
    """The page, put together of `page.html`, `page.css` and `page.js`.

    Its Content-Security-Policy admits these two by their hashes and a connection to where the page came from.
    """
    style, script = ((HOME / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = (HOME / "page.html").read_text(encoding="utf-8")
    body = body.replace("/*page.css*/", style).replace("/*page.js*/", script)
    policy = (
        "default-src 'none'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        f"frame-ancestors 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return Page(
        body.encode(),
        {
            "Content-Type": "text/html; charset=utf-8",
            "Content-Security-Policy": policy,
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",  # the URL may hold the token
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
        },
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
