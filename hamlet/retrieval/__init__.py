"""Image retrieval: finding and describing pictures, an index over the descriptors, metrics, datasets and reports."""

from hamlet.images import ImageList, UnreadableImage, list_images, load_image
from hamlet.retrieval.index import Index

__all__ = ["ImageList", "Index", "UnreadableImage", "list_images", "load_image"]
