"""Keeps Lightning's advertising and device notices out of the output."""

from __future__ import annotations

import logging
import warnings


def quiet_lightning() -> None:
    """Lets only Lightning's errors through; importing Lightning resets its level, so this imports it first."""
    import lightning.pytorch

    logging.getLogger(lightning.pytorch.__name__).setLevel(logging.ERROR)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning|torch\.distributed|torch\.utils\.data")
