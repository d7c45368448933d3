"""Layout planning for a model on given devices: memory, operations, communication, and the choice in words."""

from pangu_lab.planner.hardware import HARDWARE, Hardware, memory_size
from pangu_lab.planner.layouts import LayoutEstimate, Plan, estimate, plan
from pangu_lab.planner.memory import KINDS
from pangu_lab.planner.pictures import plot_mesh, plot_plan
from pangu_lab.planner.serving import ServingEstimate, ServingPlan, plan_serving

__all__ = [
    "HARDWARE",
    "KINDS",
    "Hardware",
    "LayoutEstimate",
    "Plan",
    "ServingEstimate",
    "ServingPlan",
    "estimate",
    "memory_size",
    "plan",
    "plan_serving",
    "plot_mesh",
    "plot_plan",
]
