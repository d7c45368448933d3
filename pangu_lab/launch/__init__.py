"""Starting a run on one or many devices: plans, processes, monitoring of every rank, and Ascend's rank tables."""

from pangu_lab.launch.job import Patience
from pangu_lab.launch.launcher import LaunchFailed, LaunchResult, fit_layout, launch, prepare
from pangu_lab.launch.plan import BACKENDS, Command, HostPlan, LaunchPlan
from pangu_lab.launch.rank_table import (RankTable, create_rank_table, merge_rank_tables, read_rank_table,
                                         write_rank_table)
from pangu_lab.launch.reference import tables

__all__ = ["BACKENDS", "Command", "HostPlan", "LaunchFailed", "LaunchPlan", "LaunchResult", "Patience", "RankTable",
           "create_rank_table", "fit_layout", "launch", "merge_rank_tables", "prepare", "read_rank_table", "tables",
           "write_rank_table"]
