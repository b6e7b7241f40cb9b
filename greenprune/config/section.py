"""What every section of a configuration has in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, Union

from pydantic import BaseModel, ConfigDict, Field, Strict

Int = Annotated[int, Strict()]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    # Fields that came later, with the value that stands for how it was before them: artifacts of then stay valid.
    LATER: ClassVar[Mapping[str, Any]] = {}

    def identity(self) -> dict[str, Any]:
        """What keys and ids are computed from: every field, but a later one only where it changes something."""
        fields = self.model_dump(mode="json")
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in self.LATER and fields[name] == self.LATER[name]:
                del fields[name]
            elif isinstance(value, Section):
                fields[name] = value.identity()
            elif isinstance(value, list):
                fields[name] = [
                    inner.identity() if isinstance(inner, Section) else dumped
                    for inner, dumped in zip(value, fields[name], strict=True)
                ]
        return fields

    def halved(self) -> Self | None:
        """The same with half as many samples in a forward, which gives the same but for rounding; None: it can't."""
        return None

    def workers(self) -> int:
        """How many processes share the work of what it configures: num_workers, where it has such a field."""
        return getattr(self, "num_workers", 1)

    def libraries(self) -> tuple[str, ...]:
        """Distributions that decide the numbers of what it configures, beside those of its stage."""
        return ()

    def output_version(self) -> int:
        """How often the output of what it configures has changed for the same input, beside its stage's version."""
        return 0


def chosen_by_method(variants: Mapping[str, type[Section]]) -> Any:
    """The type of a section that is one of these, told apart by its `method`."""
    return Annotated[Union[tuple(variants.values())], Field(discriminator="method")]  # noqa: UP007
