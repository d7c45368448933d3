"""What a file must hold: the base of all schemas, and the kinds of values that several of them share.

A schema stands beside the code that reads its file, and ``pangu_lab.reading`` applies it. Fields it does not name are
let through: a newer version may write more. Importing this costs a fifth of a second (pydantic), so the command
line's own modules do not.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """Base of all schemas: no value is converted ("3" is not 3, true is not 1)."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


LARGEST = 1 << 53  # what a number of any JSON reader holds exactly
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
Seconds = Annotated[float, Field(ge=-1e11, le=1e11, allow_inf_nan=False)]  # since 1970; calendars end at the year 9999
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+$", max_length=255)]
