"""Flower: a client app and a strategy that carry the messages of `dpcomp.federated` in Flower's."""

from dpcomp.core.extras import require

require("flower", "flwr")

# ruff: noqa: E402  # what follows imports it
from dpcomp.adapters.flower.client_app import PrivateClientApp as PrivateClientApp
from dpcomp.adapters.flower.node_folders import folder_in_node_config as folder_in_node_config
from dpcomp.adapters.flower.node_folders import prepare_node as prepare_node
from dpcomp.adapters.flower.node_folders import simulated_folders as simulated_folders
from dpcomp.adapters.flower.strategy import PrivateStrategy as PrivateStrategy
