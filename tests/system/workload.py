"""The workload that the measured runs use too, for tests."""

from __future__ import annotations

from ops.soak.workload import CLIENTS, OPERATION_DEADLINE_S, PROGRESS_TIMEOUT_S, Workload, judged

__all__ = ["CLIENTS", "OPERATION_DEADLINE_S", "PROGRESS_TIMEOUT_S", "Workload", "judged"]
