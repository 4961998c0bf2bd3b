"""ftrain: keep a ``torch.distributed`` job training through crashes, hangs and lost nodes."""
