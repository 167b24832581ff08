"""What runs on a CUDA device alone: fused attention, recorded calls, resizing. Nothing here is needed elsewhere."""
