"""Sparsifiers: which coordinates of an update are kept."""

from dpcomp.sparsify.history_k import HistoryK as HistoryK
from dpcomp.sparsify.random_k import RandomK as RandomK
from dpcomp.sparsify.top_k import TopK as TopK
