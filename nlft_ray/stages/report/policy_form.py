"""The policies as the page needs them: every number with its default, meaning and bounds, read from the fields."""

import dataclasses
import typing
from typing import Any

from nlft_ray.core.policies import POLICIES, Policy

_BOUNDS = ("gt", "ge", "lt", "le")


def policies_for_page() -> dict[str, dict[str, Any]]:
    """By name: what the policy does, what it trains on, and its fields."""
    return {
        name: {
            "summary": _first_paragraph(policy),
            "target": policy.target,
            "fields": [_field(policy, field) for field in dataclasses.fields(policy) if field.name != "name"],
        }
        for name, policy in POLICIES.items()
    }


def _first_paragraph(policy: type[Policy]) -> str:
    return " ".join((policy.__doc__ or "").partition("\n\n")[0].split())


def _field(policy: type[Policy], field: dataclasses.Field[Any]) -> dict[str, Any]:
    hint = typing.get_type_hints(policy)[field.name]
    choices = list(typing.get_args(hint))  # of a Literal; empty for other types
    kind = "choice" if choices else "switch" if hint is bool else "number"
    return {
        "name": field.name,
        "kind": kind,
        "choices": choices,
        "default": field.default,
        "description": field.metadata["description"],
        "bounds": {bound: field.metadata[bound] for bound in _BOUNDS if bound in field.metadata},
    }


def values_of(policy: Policy) -> dict[str, Any]:
    """A policy's name and numbers."""
    return dataclasses.asdict(policy)
