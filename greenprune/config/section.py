"""What every section of a configuration has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Union

from pydantic import BaseModel, ConfigDict, Field, Strict

Int = Annotated[int, Strict()]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def output_version(self) -> int:
        """How often the output of what it configures has changed for the same input, beside its stage's version."""
        return 0


def chosen_by_method(variants: Mapping[str, type[Section]]) -> Any:
    """The type of a section that is one of these, told apart by its `method`."""
    return Annotated[Union[tuple(variants.values())], Field(discriminator="method")]  # noqa: UP007
