"""``Watched``: what starts a run, with the run's monitor below; what ``LaunchPanel`` and ``StartForm`` share."""

from __future__ import annotations

from typing import Any

import ipywidgets

from widgets.base import LabWidget
from widgets.monitor import RunMonitor


class Watched(ipywidgets.VBox):
    """Forms and controls above, the monitor below; without a live kernel all as they last were."""

    def __init__(self, *parts: LabWidget, monitor: RunMonitor) -> None:
        self.monitor = monitor
        super().__init__([*parts, monitor], layout=ipywidgets.Layout(width="100%"))

    def stop(self) -> None:
        """Ask the run to finish its step, save and end."""
        self.monitor.stop()

    def __repr__(self) -> str:
        return "\n".join(part.still_text() for part in self.children)

    def _repr_mimebundle_(self, **options: Any):
        bundle = super()._repr_mimebundle_(**options)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        still = "".join(part.still_html() for part in self.children)
        return {**data, "text/plain": repr(self), "text/html": still}, metadata
