"""Stands in for torchvision where the original `segment-anything` is measured: the five functions that it calls.

torchvision's wheels are built against one torch each and are no part of this project's closure.
"""
