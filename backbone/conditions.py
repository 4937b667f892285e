"""How a private pass is run, and what its errors ask for: the one place where a pass is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .memory import out_of_memory
from .saved import overwritten

Condition = Literal["checkpointing", "copying", "plain"]


@dataclass
class Conditions:
    """Each costs time or memory, so it is off until an error asks for it.

    checkpointing: blocks are computed again on the way back. copying: autograd keeps copies, for other packs' patches
    that write in place (FreeU V2 does). plain: other packs' inference tensors are seen as ordinary ones.
    """

    checkpointing: bool = False
    copying: bool = False
    plain: bool = False

    def answer(self, error: RuntimeError) -> Condition | None:
        """The condition that may help against an error, now on; None where none does or where it was on already.

        Checkpointing may have been on: memory that ran out may suffice once more, when what is left over has been let
        go. How often to try is the caller's.
        """
        if out_of_memory(error):
            self.checkpointing = True
            return "checkpointing"
        if overwritten(error) and not self.copying:
            self.copying = True
            return "copying"
        if "nference tensor" in str(error) and not self.plain:
            self.plain = True
            return "plain"
        return None
