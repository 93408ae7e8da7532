"""The policies by name: each module here that defines a named `Policy` adds it, so a new one is one file."""

import importlib
import pkgutil

from nlft_ray.core.policies.base import Policy, TokenWeights

__all__ = ["POLICIES", "Policy", "TokenWeights"]


def _discover() -> dict[str, type[Policy]]:
    policies = {}
    for module_info in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        module = importlib.import_module(module_info.name)
        for item in vars(module).values():
            if isinstance(item, type) and issubclass(item, Policy) and item.name:
                policies[item.name] = item
    return dict(sorted(policies.items()))


POLICIES: dict[str, type[Policy]] = _discover()
"""Every policy class by its name, in the order of the names."""
