"""Starting a run on one or many devices: plans, processes, monitoring of every rank, and Ascend's rank tables."""

from pangu_lab.launch.hosts import Host, parse_hosts, read_hosts
from pangu_lab.launch.job import Patience
from pangu_lab.launch.launcher import LaunchFailed, LaunchResult, fit_layout, launch, prepare
from pangu_lab.launch.plan import BACKENDS, Command, HostPlan, LaunchPlan
from pangu_lab.launch.rank_table import (
    RankTable,
    Server,
    create_rank_table,
    merge_rank_tables,
    parse_rank_table,
    read_rank_table,
    server_table,
    write_rank_table,
)
from pangu_lab.launch.reference import tables

__all__ = [
    "BACKENDS",
    "Command",
    "Host",
    "HostPlan",
    "LaunchFailed",
    "LaunchPlan",
    "LaunchResult",
    "Patience",
    "RankTable",
    "Server",
    "create_rank_table",
    "fit_layout",
    "launch",
    "merge_rank_tables",
    "parse_hosts",
    "parse_rank_table",
    "prepare",
    "read_hosts",
    "read_rank_table",
    "server_table",
    "tables",
    "write_rank_table",
]
