"""How long things are kept that nobody uses any more, how early what ends is told of, how often keys are tested.

Values, handed down from the settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class Retention:
    """The deployment's policy for secrets."""

    restorable: timedelta = timedelta(days=7)
    """How long a deleted secret can be restored."""
    versions: int = 5
    """How many versions out of force are kept of a secret, for rolling back."""
    versions_for: timedelta = timedelta(days=30)
    """How long such a version is kept."""
    expiring: timedelta = timedelta(days=14)
    """How long before its end a secret is shown as expiring."""
    checked: timedelta = timedelta(0)
    """Between two health checks of secrets whose owners did not decide; zero: never."""
