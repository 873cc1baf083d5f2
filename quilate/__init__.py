"""quilate raises a language model through its phases and measures what each phase was worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quilate.phases.align.call import align

__all__ = ["align"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`align` when it is first asked for: the command line must not wait for torch to show its help."""
    if name == "align":
        from quilate.phases.align.call import align

        return align
    raise AttributeError(f"module 'quilate' has no attribute '{name}'")
