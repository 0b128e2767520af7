"""The demo: a small HAMLET and a baseline, trained and compared on scikit-image's photographs in a few minutes."""

from hamlet.demo.run import run_demo

__all__ = ["run_demo"]
