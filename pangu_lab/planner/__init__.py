"""Layout planning for a model on given devices: memory, operations, communication, and the choice in words."""

from pangu_lab.planner.hardware import HARDWARE, Hardware, memory_size
from pangu_lab.planner.layouts import LayoutEstimate, Plan, estimate, plan
from pangu_lab.planner.memory import KINDS
from pangu_lab.planner.pictures import plot_mesh, plot_plan

__all__ = ["HARDWARE", "KINDS", "Hardware", "LayoutEstimate", "Plan", "estimate", "memory_size", "plan",
           "plot_mesh", "plot_plan"]
