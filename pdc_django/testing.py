"""For tests of Django projects: assert how a value in the storage changes."""

from pdc.testing import assert_change, value_of

__all__ = ["assert_change", "value_of"]
