"""The policies as the page needs them: every number with its default, meaning and bounds, read from the fields."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic_core import to_jsonable_python

from nlft_ray.core.policies import POLICIES, Policy

FORMULAS = frozenset({"cut", "nlft", "origin", "released", "rft", "sft"})
"""Policies that assets/policies.js can weigh too, so that their numbers can be turned in the page. Any other policy is
shown with the weights that Python gives it."""
_BOUNDS = ("gt", "ge", "lt", "le")


def policies_for_page(fixed: Sequence[Policy]) -> dict[str, dict[str, Any]]:
    """Summary, target and fields of every policy by its name; those in `fixed` with the numbers that they have."""
    described: dict[str, dict[str, Any]] = {
        name: {
            "summary": _first_paragraph(policy),
            "target": policy.target,
            "fields": [_field(policy, field) for field in dataclasses.fields(policy) if field.name != "name"],
        }
        for name, policy in POLICIES.items()
    }
    for policy in fixed:
        values = values_of(policy)
        text = yaml.safe_dump({"policy": values}, sort_keys=False, allow_unicode=True)
        described[policy.name]["fixed"] = {"values": values, "yaml": text}
    return described


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
        "default": to_jsonable_python(field.default),
        "description": field.metadata.get("description", ""),
        "bounds": {bound: field.metadata[bound] for bound in _BOUNDS if bound in field.metadata},
    }


def values_of(policy: Policy) -> dict[str, Any]:
    """Name and numbers of a policy, as JSON holds them."""
    return to_jsonable_python(dataclasses.asdict(policy))
