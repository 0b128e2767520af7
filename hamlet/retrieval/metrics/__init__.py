"""Metrics of retrieval, each as its benchmark defines it, over rankings given as database indices."""

from hamlet.retrieval.metrics.buildings import oxford, oxford_per_query, revisited, revisited_per_query
from hamlet.retrieval.metrics.common import Scores, mean
from hamlet.retrieval.metrics.labels import labelled, labelled_per_query
from hamlet.retrieval.metrics.landmarks import landmark_gap, landmark_retrieval, landmark_retrieval_per_query

__all__ = [
    "Scores",
    "labelled",
    "labelled_per_query",
    "landmark_gap",
    "landmark_retrieval",
    "landmark_retrieval_per_query",
    "mean",
    "oxford",
    "oxford_per_query",
    "revisited",
    "revisited_per_query",
]
