"""Unsupervised 3D generative models for Down syndrome brain MRI: the walk, verb by verb."""

__version__ = "0.1.0"
