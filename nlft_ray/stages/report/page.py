"""The page: template, styles, scripts and data as one HTML text that loads nothing and runs only its own script."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from nlft_ray._version import __version__
from nlft_ray.analysis.accuracy import accuracies
from nlft_ray.analysis.run import ScoredRun
from nlft_ray.core.policies import Policy
from nlft_ray.stages.report.charts import training_charts
from nlft_ray.stages.report.policies import policies_for_page, values_of
from nlft_ray.stages.report.tokens import TokenSet

_SCRIPTS = ("policies.js", "data.js", "dom.js", "reasons.js", "tokens.js", "panel.js", "list.js", "report.js")
_CHANGES_SHOWN = 10
# What could end the script element, open a comment in it, or break a line in older JavaScript.
_ESCAPED = "<>&\u2028\u2029"


def render(run: ScoredRun, sets: Sequence[TokenSet], policy: Policy, fixed: Sequence[Policy]) -> str:
    """The whole page, which opens with `policy`. The sets hold the weights of the policies in `fixed`."""
    script, css = "\n".join(_asset(name) for name in _SCRIPTS), _asset("report.css")
    shown = len(sets[0].examples)
    return _template().render(
        run=run,
        is_run=len(run.stages) > 1,
        accuracies=accuracies(run.of_stage("evaluate")),
        charts=training_charts(run.metrics),
        changes_shown=_CHANGES_SHOWN,
        configurations={
            record.name: yaml.safe_dump(record.manifest.identity.config, sort_keys=False, allow_unicode=True)
            for record in run.stages
        },
        examples_shown=shown,
        examples_left_out=run.scored.manifest.rows_out - shown,
        version=__version__,
        css=Markup(css),
        script=Markup(script),
        data=json_for_script(
            {
                "policies": policies_for_page(fixed),
                "policy": values_of(policy),
                "sets": [asdict(one) for one in sets],
            }
        ),
        content_security_policy=(
            f"default-src 'none'; script-src {_source(script)}; style-src {_source(css)}; "
            "base-uri 'none'; form-action 'none'"
        ),
    )


def json_for_script(value: Any) -> Markup:
    """JSON that may stand inside a script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in _ESCAPED:
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _source(text: str) -> str:
    """The hash by which a content security policy allows an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("template.html.jinja"))
