"""Training: the paper's losses and rounds of clicks, one loop for all, fine-tuning, pre-training, distillation."""
