"""The boards as one static page that needs no network: styles, scripts and data are inside it.

The page shows what strangers wrote. So its data are JSON in a block that no browser executes, its
scripts make text of strings and nothing else (``assets/``), and its content security policy allows
the very scripts and styles that were put in, by their checksums, and no request at all.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from icl_bench.evaluation.result import SCORER_VERSION
from icl_bench.leaderboard.page_data import suite_data
from icl_bench.leaderboard.scoring import SuiteScore
from icl_bench.leaderboard.text_scoring import TextSuiteScore

# Parts of one script and of one style sheet, in this order.
_SCRIPTS = ("page.js", "board.js", "plots.js", "entry.js", "start.js")
_STYLES = ("uPlot.min.css", "page.css")


def page_html(scores: Sequence[SuiteScore | TextSuiteScore]) -> str:
    """The page of all leaderboards; equal scores give equal text.

    Args:
        scores: Suites, in the order of the page.
    """
    data = {"scorer": SCORER_VERSION, "suites": [suite_data(score) for score in scores]}
    scripts = {
        "theme": _asset("theme.js"),
        "library": _asset("uPlot.iife.min.js"),
        "script": "\n".join(map(_asset, _SCRIPTS)),
    }
    style = "\n".join(map(_asset, _STYLES))
    parts = scripts | {
        "policy": _policy(scripts.values(), style),
        "style": style,
        "licence": _asset("uPlot.LICENSE.txt"),
        "data": _script_json(data),
    }
    # In one pass, so that nothing in the data is taken for a place to fill.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def _asset(name: str) -> str:
    return (resources.files("icl_bench.leaderboard") / "assets" / name).read_text("utf-8")


def _policy(scripts: Iterable[str], style: str) -> str:
    """The content security policy: these scripts and this style, no request, no HTML from text."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_source, scripts))}",
            f"style-src {_source(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _script_json(data: Mapping[str, Any]) -> str:
    """JSON for a script element: ASCII, and nothing in it ends the element or opens another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&]", lambda match: f"\\u{ord(match[0]):04x}", text)
