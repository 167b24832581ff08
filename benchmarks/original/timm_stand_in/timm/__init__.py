"""Stands in for timm where MobileSAM's image encoder is measured: the four names that it imports, for inference."""
